"""Pure decisions: where a connection goes and who may connect, each with its reason."""
