"""How bytes move: non-blocking sockets, TLS over memory BIOs, HTTP/2 frames, relays. Knows no workloads or policies."""
