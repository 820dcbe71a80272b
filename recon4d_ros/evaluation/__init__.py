"""Metrics against ground truth."""
