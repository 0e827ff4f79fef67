"""Latency predictors fitted on measurements."""
