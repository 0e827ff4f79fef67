"""The commands other than `nas search` and `nas profile`, one file each."""
