"""Endless short clips of procedural scenes with everything that is true about them."""

from recon4d_ros.synthetic.clips.generator import ClipGenerator
from recon4d_ros.synthetic.clips.settings import ClipSettings, LabelRule

__all__ = ["ClipGenerator", "ClipSettings", "LabelRule"]
