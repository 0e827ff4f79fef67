"""What a recipe calls a task: its data, labels, losses and metrics, and the workbench that joins them to a model."""
