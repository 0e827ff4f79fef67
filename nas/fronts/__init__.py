"""What was found: points, Pareto fronts of them, and how both are shown."""
