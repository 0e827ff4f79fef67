"""What the command line does to finished runs or any model, one file a command."""
