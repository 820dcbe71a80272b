"""Figures of merit against named baselines of the same run; never collected by pytest."""
