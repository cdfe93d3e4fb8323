"""Instruction counts of the hot functions: exact where times are noise; see README.md beside this."""
