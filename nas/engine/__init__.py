"""The search as work: studies and where they are kept, evaluations here or on a Ray cluster, when to stop."""
