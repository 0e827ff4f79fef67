"""Values of the dimensions that are no plain numbers: attention patterns, dtypes, ranks."""
