"""Costs counted from the shapes of a subnetwork, without running it."""
