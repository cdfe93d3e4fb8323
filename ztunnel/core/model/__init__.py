"""What exists in a mesh, as frozen values."""
