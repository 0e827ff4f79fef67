"""A Hugging Face model made elastic in place: order of importance, training, active subnetworks, latencies."""
