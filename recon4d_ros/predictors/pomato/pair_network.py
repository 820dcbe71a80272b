"""The pairwise POMATO network on any two frames, each of which is encoded once."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.datatypes import Frame, PairPointmaps
from recon4d_ros.geometry.image_grid import Size
from recon4d_ros.networks.pomato import Features
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.image_size import network_image, network_size


class PomatoPairs:
    """Pointmaps of directed pairs of frames on the network's grid."""

    def __init__(self, engine: Engine, long_side: int, num_kept: int) -> None:
        """Use a pairwise network.

        Args:
            engine: runs it.
            long_side: of the network's images, px.
            num_kept: frames whose features are kept; older ones are encoded anew.
        """
        self._engine = engine
        self._long_side = long_side
        self._num_kept = num_kept
        self._features: dict[int, Features] = {}

    def pair(self, first: Frame, second: Frame) -> PairPointmaps:
        """Pointmaps of two frames in the camera of the first, by all three heads.

        Raises:
            PredictorError: the device has too little memory.
            ModelError: the network cannot see images of this size.
        """
        tokens_1, tokens_2 = self._engine.decode(self._encoded(first), self._encoded(second))
        own, conf_1 = self._engine.head(1, tokens_1)
        other, conf_2 = self._engine.head(2, tokens_2)
        matching, conf_matching = self._engine.head(3, tokens_2)
        return PairPointmaps(
            first.index,
            second.index,
            own[0],
            conf_1[0],
            other[0],
            conf_2[0],
            matching[0],
            conf_matching[0],
        )

    def reset(self) -> None:
        """Forget all features: frame numbers may begin anew."""
        self._features.clear()

    def warm_up(self, size: Size) -> None:
        """One pair of grey images (height, width), so that what is wrong shows at once.

        Raises:
            PredictorError, ModelError: as `pair`.
        """
        grey = Frame(0, 0, torch.full((*size, 3), 128, dtype=torch.uint8))
        self.pair(grey, grey)
        self.reset()

    def _encoded(self, frame: Frame) -> Features:
        if frame.index not in self._features:
            self._features[frame.index] = self._engine.encode(self._image(frame))
            while len(self._features) > self._num_kept:
                del self._features[next(iter(self._features))]
        return self._features[frame.index]

    def _image(self, frame: Frame) -> Tensor:
        return network_image(frame.rgb, network_size(frame.size, self._long_side))
