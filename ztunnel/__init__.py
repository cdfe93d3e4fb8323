"""ztunnel: a node-level transparent proxy that carries pod connections in mTLS HBONE."""

__version__ = "0.1.0"
