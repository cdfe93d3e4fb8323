"""Certificates of workloads: where they come from and how they are kept fresh."""
