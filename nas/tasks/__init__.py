"""What a recipe calls a task: data, labels, losses, metrics and scores."""
