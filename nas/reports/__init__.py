"""What report.html and the terminal show of a run."""
