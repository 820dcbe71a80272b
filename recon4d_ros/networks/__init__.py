"""Networks in pure torch and the reading of their weights; they know tensors, not frames."""
