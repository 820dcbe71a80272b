"""DynPT: a point tracker that also tells which points move in the world.

Source: C4D: 4D Made from 3D through Dual Correspondences, its part on dynamic-aware point
tracking; the layout of the state follows Karaev et al., CoTracker3, arXiv 2410.11831. Written from
the descriptions of the methods.
"""

from recon4d_ros.networks.dynpt.features import FeatureMaps
from recon4d_ros.networks.dynpt.model import DynPT
from recon4d_ros.networks.dynpt.sizes import DynPTConfig
from recon4d_ros.networks.dynpt.state import TrackState
from recon4d_ros.networks.dynpt.support import QuerySupport

__all__ = ["DynPT", "DynPTConfig", "FeatureMaps", "QuerySupport", "TrackState"]
