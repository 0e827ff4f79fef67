"""The recipe: its sections, its text form, and the names, directions and bounds of metrics and costs."""
