"""How much memory a network needs, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.errors import ConfigError
from recon4d_ros.geometry.image_grid import Size
from recon4d_ros.networks.pomato import PomatoSizes
from recon4d_ros.networks.pomato.sizes import PATCH
from recon4d_ros.predictors.pomato.engine import LOWER

_MIB = 2**20
# Copies of its largest maps that the fine part of a head holds at once, as measured.
_HELD_MAPS = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes that a network takes.

    Attributes:
        fixed: weights, cached features and tokens.
        per_item: working memory of one pair or frame in a batch.
    """

    fixed: int
    per_item: int

    @staticmethod
    def of(
        sizes: PomatoSizes,
        num_weights: int,
        value_bytes: int,
        size: Size,
        num_frames: int,
    ) -> Footprint:
        """Estimate for images (height, width) and `num_frames` cached frames.

        Args:
            sizes: of the network.
            num_weights: parameters.
            value_bytes: per parameter and activation.
            size: of the images.
            num_frames: frames whose features, and tokens of one pair, are kept.
        """
        pixels = size[0] * size[1]
        width = sizes.encoder_width + 4 * sizes.decoder_width
        cached = num_frames * (pixels // PATCH**2) * width * value_bytes
        # Tokens of the whole ring are joined into one tensor before a head sees them.
        fixed = num_weights * value_bytes + 2 * cached
        widest = max(sizes.feature_width // 4, *sizes.head_widths)
        return Footprint(fixed, _HELD_MAPS * pixels * widest * value_bytes)

    def batch(self, limit_mib: int, most: int) -> int:
        """Largest batch of at most `most` that stays within a bound.

        Raises:
            ConfigError: not even a batch of one does; says what to lower.
        """
        room = limit_mib * _MIB - self.fixed
        if room < self.per_item:
            needed = -(-(self.fixed + self.per_item) // _MIB)
            raise ConfigError(
                f"pomato.memory_mib={limit_mib} is too little: the network needs about {needed} "
                f"MiB; raise it, or {LOWER}"
            )
        return min(most, room // self.per_item)
