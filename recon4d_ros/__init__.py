"""Live dynamic 4D reconstruction from one ordinary camera."""

__version__ = "0.1.0"
