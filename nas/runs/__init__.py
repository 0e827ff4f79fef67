"""The folder of a run: its files, its lock, progress bars, and the processes that work on it."""
