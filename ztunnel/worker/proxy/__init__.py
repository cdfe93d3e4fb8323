"""Listener roles: what a worker does with the connections that its pods' listeners accept."""
