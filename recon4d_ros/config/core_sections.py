"""Parameters of the reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting


@dataclass(frozen=True)
class ImageConfig:
    """Sizes at which images are worked on."""

    tracking_max_side: int = setting(
        640, "long side at which points are tracked", unit="px", minimum=64, maximum=4096
    )
    dense_max_side: int = setting(
        320, "long side of depth, masks and clouds", unit="px", minimum=32, maximum=2048
    )


@dataclass(frozen=True)
class WindowConfig:
    """The sliding window."""

    size: int = setting(12, "frames in a window", minimum=4, maximum=64)
    stride: int = setting(4, "new frames between two windows", minimum=1, maximum=16)
    final_lag: int = setting(6, "frames after which a frame is final", minimum=3, maximum=32)

    @property
    def num_remembered(self) -> int:
        """Newest frames that whoever maps aside, a stride behind, may still ask for."""
        return self.size + 2 * self.stride


@dataclass(frozen=True)
class PredictorConfig:
    """Which predictor gives pointmaps."""

    name: str = setting("classical", "pointmap predictor", choices=("classical", "pomato"))


@dataclass(frozen=True)
class ComputeConfig:
    """Processor threads."""

    torch_threads: int = setting(
        1,
        "threads of torch on the CPU and of numpy's linear algebra; more of them wait for each "
        "other on a busy machine",
        minimum=1,
        maximum=256,
    )
    opencv_threads: int = setting(
        0,
        "threads of OpenCV; 0: one on two processors, which tracking and mapping fill, else two",
        minimum=0,
        maximum=256,
    )


@dataclass(frozen=True)
class OdometryConfig:
    """The classical predictor's visual odometry."""

    cell_px: int = setting(
        20, "edge of the cells that each get new points", unit="px", minimum=4, maximum=200
    )
    max_points: int = setting(3000, "bound on remembered points", minimum=200, maximum=100_000)
    num_keyframes: int = setting(
        10, "keyframes adjusted besides the window", minimum=2, maximum=100
    )
    keyframe_px: float = setting(
        12.0,
        "median displacement since the last keyframe that makes a new one",
        unit="px",
        minimum=1.0,
        maximum=500.0,
    )
    consistency_px: float = setting(
        0.7, "forward-backward mismatch of a tracked point", unit="px", minimum=0.05, maximum=10.0
    )
    noise_px: float = setting(
        0.3, "scale of the robust kernel", unit="px", minimum=0.01, maximum=10.0
    )
    outlier_px: float = setting(
        1.5, "least reprojection error of a dropped sight", unit="px", minimum=0.1, maximum=50.0
    )
    min_inlier_share: float = setting(
        0.15, "share of the points under which tracking is lost", minimum=0.01, maximum=0.9
    )
    bootstrap_px: float = setting(
        2.0,
        "what rotation must leave unexplained before depth is sought",
        unit="px",
        minimum=0.2,
        maximum=100.0,
    )
    max_adjusted: int = setting(
        1000, "points in a bundle adjustment, the most seen first", minimum=50, maximum=100_000
    )
    sure_depth_error: float = setting(
        0.05,
        "relative error of the depths below which poses that were handed out as final are fixed",
        minimum=0.0,
        maximum=1.0,
    )
    iterations: int = setting(3, "bundle adjustment steps per window", minimum=1, maximum=50)


@dataclass(frozen=True)
class FlowConfig:
    """Dense optical flow."""

    max_step: int = setting(
        3, "most frames between a frame and its nearest flow partner", minimum=1, maximum=16
    )
    step_motion_px: float = setting(
        6.4,
        "displacement to the nearest partner aimed at, at a long side of 512",
        unit="px",
        minimum=0.5,
        maximum=64.0,
    )
    num_partners: int = setting(
        3, "past partners: the nearest, its own nearest, ...", minimum=1, maximum=8
    )
    finest_scale: int = setting(
        0, "finest pyramid level of the search; 0 is the dense grid", minimum=0, maximum=3
    )
    patch_stride: int = setting(4, "step between patches", unit="px", minimum=1, maximum=8)
    refinement_iterations: int = setting(
        1, "fixed point iterations of the variational refinement", minimum=0, maximum=10
    )
    consistency_px: float = setting(
        1.0,
        "forward-backward mismatch of a valid pixel, at a long side of 512",
        unit="px",
        minimum=0.1,
        maximum=10.0,
    )
    consistency_ratio: float = setting(
        0.05, "the same, over the length of the flow", minimum=0.0, maximum=0.5
    )


@dataclass(frozen=True)
class DepthConfig:
    """Depth by triangulated flow."""

    flow_noise_px: float = setting(
        0.3,
        "standard deviation of the flow on the dense grid",
        unit="px",
        minimum=0.01,
        maximum=5.0,
    )
    grey_noise: float = setting(
        3.0,
        "grey levels by which matched pixels differ; flow along an even surface is that uncertain",
        minimum=0.0,
        maximum=50.0,
    )
    max_off_line_px: float = setting(
        1.0,
        "distance from the epipolar line beyond which a pixel has no depth",
        unit="px",
        minimum=0.1,
        maximum=20.0,
    )
    max_disagreement: float = setting(
        4.0,
        "standard deviations by which two estimates may differ and still join",
        minimum=1.0,
        maximum=20.0,
    )
    max_spread: float = setting(
        0.055,
        "relative spread of the depths about a plane around a pixel, beyond which it has none",
        minimum=0.01,
        maximum=10.0,
    )
    carry_over: float = setting(
        0.9,
        "share of a frame's information that the next one takes over",
        minimum=0.0,
        maximum=1.0,
    )
    max_relative_sigma: float = setting(
        0.2, "relative standard deviation of a depth that is shown", minimum=0.01, maximum=1.0
    )
    min_baseline: float = setting(
        0.002,
        "movement within the window, over the depth, below which there is no parallax",
        minimum=0.0,
        maximum=0.1,
    )


@dataclass(frozen=True)
class MotionConfig:
    """Which pixels move. Lengths are for a long side of 512 px."""

    fusion: str = setting(
        "hysteresis",
        "how the votes of several pairs join; union flags what any pair flags",
        choices=("hysteresis", "union"),
    )
    threshold_px: float = setting(
        0.7,
        "least distance from the epipolar line that speaks for motion",
        unit="px",
        minimum=0.1,
        maximum=10.0,
    )
    noise_factor: float = setting(
        3.0, "the same, in standard deviations of the flow", minimum=1.0, maximum=10.0
    )
    max_threshold_px: float = setting(
        3.0,
        "a pair so noisy that it needs a larger threshold is not used",
        unit="px",
        minimum=0.5,
        maximum=30.0,
    )
    parallax_margin: float = setting(
        4.0,
        "parallax beyond that of the background, in widths of the background's",
        minimum=1.0,
        maximum=20.0,
    )
    max_spread: float = setting(
        0.65,
        "parallax more spread over the image than this (1: all over) is depth, not motion",
        minimum=0.1,
        maximum=2.0,
    )
    min_contrast: float = setting(
        1.5,
        "grey difference that undoing the motion must make",
        unit="grey levels",
        minimum=0.0,
        maximum=50.0,
    )
    matching_factor: float = setting(
        3.0,
        "network predictors: displacement of a surface, over the median one, that speaks for "
        "motion",
        minimum=1.0,
        maximum=10.0,
    )
    matching_floor: float = setting(
        0.0005,
        "noise of a network's points across the ray, over their distance, that is always granted; "
        "four times as much along the ray",
        minimum=0.0,
        maximum=0.1,
    )
    memory: float = setting(
        0.8,
        "share of the belief that the nearest partner hands on",
        minimum=0.0,
        maximum=0.95,
    )
    min_area_px: int = setting(
        64, "smaller moving parts are dropped", unit="px", minimum=0, maximum=10_000
    )


@dataclass(frozen=True)
class RefinementConfig:
    """Smoothing of depth and tracks of final frames over time."""

    mode: str = setting(
        "robust",
        "robust: scale-free weights, moving tracks keep their speed; literal: C4D's equations; "
        "off: nothing is smoothed",
        choices=("robust", "literal", "off"),
    )
    sharpness: float = setting(
        1.0,
        "lambda of C4D: how fast a frame's weight falls with its step, over the usual step "
        "(literal: in map units)",
        minimum=0.0,
        maximum=100.0,
    )
    radius: int = setting(
        2, "frames on either side that are smoothed together", unit="frames", minimum=1, maximum=4
    )
    min_visibility: float = setting(
        0.5, "least visibility of a track that is lifted", minimum=0.0, maximum=1.0
    )
    neighbours: int = setting(
        4, "nearest tracks whose displacements a pixel blends", minimum=1, maximum=16
    )
    reach: float = setting(
        3.0,
        "distance at which a track's influence fades, over the usual distance between tracks",
        minimum=0.1,
        maximum=1000.0,
    )
    grid_step: int = setting(
        4,
        "step between pixels that are blended one by one, away from outlines",
        unit="px",
        minimum=1,
        maximum=16,
    )
    max_change: float = setting(
        0.25,
        "largest factor, less 1, by which a depth changes either way",
        minimum=0.0,
        maximum=10.0,
    )


@dataclass(frozen=True)
class MapConfig:
    """The static map."""

    max_voxels: int = setting(400_000, "bound on stored voxels", minimum=1000, maximum=20_000_000)
    voxel_size: float = setting(
        0.01, "voxel edge over the median depth of the first keyframe", minimum=1e-4, maximum=1.0
    )
    min_observations: int = setting(
        2, "observations before a voxel is published", minimum=1, maximum=100
    )
    frame_stride: int = setting(
        1, "every n-th final frame that has depth is mapped", unit="frames", minimum=1, maximum=100
    )
    pixel_stride: int = setting(
        2,
        "one pixel of every square block of this side is mapped, another one in each frame",
        unit="px",
        minimum=1,
        maximum=8,
    )
    min_confidence: float = setting(
        0.3, "least confidence of a mapped pixel over the frame's median", minimum=0.0, maximum=1.0
    )
    edge_ratio: float = setting(
        0.05,
        "a pixel is mapped where the depths of its 3x3 pixels differ by at most this share of the "
        "least; across outlines depth is smeared",
        minimum=0.001,
        maximum=10.0,
    )
    carve_margin: float = setting(
        0.2,
        "a voxel nearer than the depth seen behind it by this share of that depth is seen through",
        minimum=0.01,
        maximum=0.9,
    )
    publish_rate: float = setting(
        1.0, "publications of ~/static_map", unit="Hz", minimum=0.01, maximum=30.0
    )
