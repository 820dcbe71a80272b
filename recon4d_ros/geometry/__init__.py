"""Geometry in pure torch: batched, any device, any float type.

Points and pixels are the last axis. Functions on dense maps let NaN (unknown) through; functions
that estimate something, and all transforms, refuse values that are not finite.
"""
