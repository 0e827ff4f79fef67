"""Subnetworks as ordinary Hugging Face model folders: written, converted and checked by reloading."""
