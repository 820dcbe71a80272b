"""The order of the rooms."""
