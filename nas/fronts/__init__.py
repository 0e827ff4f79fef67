"""Points, Pareto fronts, hypervolume, and how a front is printed."""
