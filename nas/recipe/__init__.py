"""What a recipe may say: its sections, its text, the names and bounds of metrics and costs."""
