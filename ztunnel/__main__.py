"""`python -m ztunnel` is the command `ztunnel`."""

from ztunnel.cli import main

main()
