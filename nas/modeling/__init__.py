"""How a module computes a subnetwork, and what an exported model contains."""
