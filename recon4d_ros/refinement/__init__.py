"""Refining what alignment left."""
