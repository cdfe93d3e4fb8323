"""`ztunnel demo`: the whole path on real traffic, in namespaces of its own, proven beat by beat."""
