"""Losses, readers of training data and the training itself."""
