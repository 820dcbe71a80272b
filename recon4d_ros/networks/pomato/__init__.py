"""POMATO: pointmaps and pointmap matching of image pairs and of short windows of a video.

Source: POMATO: Marrying Pointmap Matching with Temporal Motion for Dynamic 3D Reconstruction,
arXiv 2504.05692. Written from the description of the method; the published weights have a licence
of their own (CC BY-NC-SA 4.0) and are not part of this package.
"""

from recon4d_ros.networks.pomato.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_safetensors,
)
from recon4d_ros.networks.pomato.dpt_head import Pointmap
from recon4d_ros.networks.pomato.model import (
    PairOutput,
    PomatoNet,
    WindowMode,
    WindowOutput,
    window_pairs,
)
from recon4d_ros.networks.pomato.sizes import PomatoSizes
from recon4d_ros.networks.pomato.tokens import Features, HookTokens

__all__ = [
    "Checkpoint",
    "Features",
    "HookTokens",
    "PairOutput",
    "Pointmap",
    "PomatoNet",
    "PomatoSizes",
    "WindowMode",
    "WindowOutput",
    "load_checkpoint",
    "save_safetensors",
    "window_pairs",
]
