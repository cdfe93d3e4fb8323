"""The seam between the control half and the workers: typed messages, and channels that carry them."""
