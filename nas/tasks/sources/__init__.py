"""Local sources of data: files of every format, folders, and the part of them that a recipe names."""
