"""The pods that this agent serves: where they come from, their capture, their life and their end."""
