"""The pairs of agents that are compared; each module knows how one product is started."""
