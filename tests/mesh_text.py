"""A mesh file for agents under test: a client, a server behind a service, and a policy between them."""

CLIENT_IP, SERVER_IP, VIP = "10.1.0.2", "10.2.0.2", "10.100.0.1"
MESH = f"""
workloads:
- {{name: client, uid: client, namespace: demo, serviceAccount: client, protocol: HBONE, workloadIps: [{CLIENT_IP}]}}
- name: server
  uid: server
  namespace: demo
  serviceAccount: server
  protocol: HBONE
  workloadIps: [{SERVER_IP}]
  services: {{demo/web.demo: {{80: 8080}}}}
services:
- {{name: web, namespace: demo, hostname: web.demo, vips: [/{VIP}], ports: {{80: 8080}}}}
"""
DENY = """
policies:
- name: no-client
  namespace: demo
  scope: Namespace
  action: Deny
  rules: [[[principals: [!Exact cluster.local/ns/demo/sa/client]]]]
"""
