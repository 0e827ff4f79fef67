"""The folder of a run: its files, its lock, its processes, and how progress is printed."""
