"""Subnetworks as ordinary Hugging Face model folders, checked by reloading, and the modelling file they carry."""
