"""Which subnetwork to evaluate next: our surrogate-guided sampler, every other by name, and block search."""
