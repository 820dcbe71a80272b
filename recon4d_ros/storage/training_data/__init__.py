"""Readers of data sets that trackers are trained on; all give `Clips`."""
