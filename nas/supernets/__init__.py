"""A Hugging Face model made elastic in place: its order of importance, its training, one active subnetwork."""
