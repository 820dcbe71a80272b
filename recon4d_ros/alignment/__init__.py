"""Joining windows to the map."""
