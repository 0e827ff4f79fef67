"""Latency, memory and energy of models, measured on a device."""
