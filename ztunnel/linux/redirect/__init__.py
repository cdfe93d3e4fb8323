"""Capture rules: as data, as text of both tools, applied, verified, removed."""
