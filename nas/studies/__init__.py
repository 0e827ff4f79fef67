"""Optuna studies of a run: how trials are asked, evaluated, stored, shared and stopped."""
