"""The results of a run, as report.html and in the terminal."""
