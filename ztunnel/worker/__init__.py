"""The fast half: owns connections. Talks to the control half only through `link` messages."""
