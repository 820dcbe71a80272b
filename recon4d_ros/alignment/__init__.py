"""Joining windows to the map, and whole clips from pairs."""

from recon4d_ros.alignment.offline import align_pairs
from recon4d_ros.alignment.offline_result import AlignmentReport, PairAlignment

__all__ = ["AlignmentReport", "PairAlignment", "align_pairs"]
