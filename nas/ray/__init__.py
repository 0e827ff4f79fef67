"""Evaluations and trainings on a Ray cluster."""
