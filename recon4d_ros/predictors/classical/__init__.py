"""The classical predictor: OpenCV, no weights, two CPU cores."""
