"""Costs that are counted from the tensor shapes of a subnetwork, without running it."""
