"""Values of the dimensions that are more than a number: attention patterns, dtypes, ranks."""
