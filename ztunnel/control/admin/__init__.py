"""What the agent tells and takes over HTTP: admin (15000), metrics (15020), readiness (15021)."""
