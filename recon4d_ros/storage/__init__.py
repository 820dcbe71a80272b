"""Doors to files: sequences, bags, videos, trajectories, clouds."""
