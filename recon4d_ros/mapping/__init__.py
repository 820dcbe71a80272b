"""The bounded static map and the moving points of the present."""
