"""Parameters of the alignment of a stream of pairs."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting


@dataclass(frozen=True)
class FixedLagConfig:
    """Alignment of a stream of pairs of frames, as pairwise networks give them."""

    size: int = setting(
        16, "recent frames that are kept with their depth", unit="frames", minimum=8, maximum=256
    )
    lag: int = setting(
        6,
        "newest frames that still move; older ones stand still",
        unit="frames",
        minimum=1,
        maximum=64,
    )
    num_keyframes: int = setting(8, "older frames kept as anchors", minimum=1, maximum=256)
    keyframe_interval: int = setting(
        10, "frames after which a keyframe is taken", unit="frames", minimum=1, maximum=1000
    )
    num_anchors: int = setting(
        3, "newest keyframes, with one of which in turn a frame is paired", minimum=1, maximum=16
    )
    num_samples: int = setting(
        2000, "static pixels of a pair that are compared", minimum=100, maximum=1_000_000
    )
    steps: int = setting(3, "damped steps per frame", minimum=1, maximum=50)
    jerk: float = setting(
        0.05,
        "usual change of the translation from one step to the next, over the median depth",
        minimum=1e-6,
        maximum=1e6,
    )
    turn_rad: float = setting(
        0.05,
        "usual change of the rotation from one step to the next",
        unit="rad",
        minimum=1e-6,
        maximum=1e6,
    )
