"""Seeded scenes with exact poses, depth, masks and tracks."""
