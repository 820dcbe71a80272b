"""The POMATO predictor: a network on a stream of images."""
