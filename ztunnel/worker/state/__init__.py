"""The mesh as a worker knows it."""
