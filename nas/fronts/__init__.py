"""What a search ends with: points, Pareto fronts, hypervolume, and how a front is printed."""
