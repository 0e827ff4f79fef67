"""Which subnetwork to evaluate next: a surrogate-guided Optuna sampler for any study."""
