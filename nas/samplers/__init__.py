"""A surrogate-guided Optuna sampler for any study with several objectives."""
