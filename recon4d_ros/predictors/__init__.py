"""Interchangeable sources of pointmaps, poses, correspondences and tracks."""
