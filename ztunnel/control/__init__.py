"""The slow half: configuration, certificates, pods, capture, admin."""
