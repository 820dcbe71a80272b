"""Parameters of the alignment."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting


@dataclass(frozen=True)
class AlignmentConfig:
    """Joining windows to the map."""

    max_keyframes: int = setting(48, "bound on stored keyframes", minimum=2, maximum=1000)
    max_landmarks: int = setting(
        20_000, "bound on stored landmark positions", minimum=100, maximum=1_000_000
    )
    keyframe_overlap: float = setting(
        1 / 3,
        "share of the last keyframe's points in view below which a new one is made",
        minimum=0.0,
        maximum=1.0,
    )
    keyframe_rotation: float = setting(
        15.0,
        "rotation since the last keyframe that makes a new one",
        unit="deg",
        minimum=1.0,
        maximum=180.0,
    )
    keyframe_interval: int = setting(
        20, "frames since the last keyframe that make a new one", minimum=1, maximum=10_000
    )
    keyframe_features: int = setting(
        500, "ORB features stored per keyframe", minimum=50, maximum=5000
    )
    relocalisation_frames: int = setting(
        30, "frames without a pose after which a new submap starts", minimum=1, maximum=10_000
    )
    relocalisation_inliers: int = setting(
        25, "matches that must agree on a pose", minimum=6, maximum=1000
    )
    relocalisation_share: float = setting(
        0.3, "share of the matches that must agree on a pose", minimum=0.05, maximum=1.0
    )
    loop_closure: bool = setting(
        True, "correct the drift of the map when a place is seen again, as a map_correction event"
    )
    loop_min_gap: int = setting(
        100, "frames since a place was seen after which it counts as seen again", minimum=1
    )
    loop_inliers: int = setting(
        40, "matches of two keyframes that must agree on a similarity", minimum=10, maximum=1000
    )
    loop_share: float = setting(
        0.4, "share of the matches that must agree on a similarity", minimum=0.05, maximum=1.0
    )
    loop_min_correction: float = setting(
        0.02,
        "displacement of what the new keyframe shows, over its depth, below which nothing moves",
        minimum=0.0,
        maximum=1.0,
    )
    loop_drift: float = setting(
        0.003,
        "expected drift after one frame, position over depth and scale; grows with the square "
        "root of their number, and a loop that needs far more is refused",
        minimum=1e-5,
        maximum=0.1,
    )
