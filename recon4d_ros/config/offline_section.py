"""Parameters of the alignment of whole clips, which only files go through."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting
from recon4d_ros.errors import ConfigError


@dataclass(frozen=True)
class OfflineConfig:
    """Alignment of all pairs of a clip at once."""

    offsets: str = setting(
        "1,3,5,7,9",
        "frames between the two of a pair, separated by commas, 1 among them; every pair is given "
        "to the network both ways",
    )
    window: int = setting(
        100,
        "frames aligned at once, all their pairs in memory (100 at 512x288 px: some 20 GB); "
        "longer clips are aligned window by window",
        unit="frames",
        minimum=4,
        maximum=1000,
    )
    overlap: float = setting(
        0.5,
        "share of a window that the next one begins with; these frames keep their poses",
        minimum=0.1,
        maximum=0.9,
    )
    principal_point: str = setting(
        "half_size",
        "where an estimated camera has its principal point: half_size is W/2, H/2 as DUSt3R's "
        "family has it, centre is the middle between the outer pixel centres, (W-1)/2, (H-1)/2",
        choices=("half_size", "centre"),
    )
    iterations: int = setting(
        300, "adam: steps of each of the two stages", minimum=1, maximum=100_000
    )
    learning_rate: float = setting(0.01, "adam: rate of the first step", minimum=1e-6, maximum=1.0)
    final_learning_rate: float = setting(
        0.001, "adam: rate of the last step, linear in between", minimum=0.0, maximum=1.0
    )
    movement_weight: float = setting(
        0.01,
        "adam: weight of the camera movement alignment",
        unit="1/px",
        minimum=0.0,
        maximum=10.0,
    )
    smoothness_weight: float = setting(
        0.01, "adam: weight of the camera trajectory smoothness", minimum=0.0, maximum=10.0
    )
    translation_weight: float = setting(
        1.0,
        "weight of translation over rotation in the trajectory smoothness",
        minimum=0.0,
        maximum=100.0,
    )
    movement_start: float = setting(
        0.1, "adam: share of the steps before the camera movement counts", minimum=0.0, maximum=1.0
    )
    max_movement_px: float = setting(
        20.0,
        "adam: a step at which the flows differ more on average leaves the camera movement out",
        unit="px",
        minimum=0.1,
        maximum=1000.0,
    )
    samples: int = setting(
        256, "fast: static pixels per frame that fix poses and scales", minimum=32, maximum=100_000
    )
    max_steps: int = setting(15, "fast: bound on second-order steps", minimum=1, maximum=1000)
    min_static_px: int = setting(
        30,
        "a frame with fewer static pixels is aligned by all of its pixels, and reported",
        unit="px",
        minimum=3,
        maximum=10_000,
    )

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """`offsets` as numbers.

        Raises:
            ConfigError: they are not numbers above zero, or 1 is missing.
        """
        parts = [part.strip() for part in self.offsets.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts) or "1" not in parts:
            raise ConfigError(
                f"offline.offsets={self.offsets!r} is refused; expected numbers of frames above "
                "zero with 1 among them, so that neighbours are paired, such as 1,3,5"
            )
        return tuple(sorted({int(part) for part in parts}))

    @property
    def num_overlapped(self) -> int:
        """Frames that two windows have in common, at least two."""
        return min(self.window - 1, max(2, round(self.overlap * self.window)))
