"""The whole POMATO network: one pair of images or one window of a video at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato.checkpoint import load_checkpoint
from recon4d_ros.networks.pomato.dpt_head import DEFAULT_CHUNK
from recon4d_ros.networks.pomato.parts import HEADS, PomatoParts, check_heads, check_images
from recon4d_ros.networks.pomato.tokens import Features

WindowMode: TypeAlias = Literal["tracking", "fast_recon", "video_depth"]


@dataclass(frozen=True)
class PairOutput:
    """Pointmaps (B, H, W, 3) and confidences (B, H, W) of pairs, all in the camera of image 1.

    Attributes:
        points_1: points of the pixels of image 1.
        conf_1: their confidence, above 1.
        points_2_in_1: points of the pixels of image 2, at the time of image 2.
        conf_2: their confidence.
        matching_2_in_1: where these points were at the time of image 1.
        conf_matching: their confidence.
    """

    points_1: Tensor
    conf_1: Tensor
    points_2_in_1: Tensor
    conf_2: Tensor
    matching_2_in_1: Tensor
    conf_matching: Tensor


@dataclass(frozen=True)
class WindowOutput:
    """Pointmaps (B, T, H, W, 3) and confidences (B, T, H, W) of pairs t, in camera 1 of each.

    The mode of the window says which frames are views 1 and 2 of pair t, see `window_pairs`.
    What was not asked for is None.

    Attributes:
        view1_points: points of the pixels of view 1 (head 1).
        view1_conf: their confidence, above 1.
        view2_points: points of the pixels of view 2 at the time of view 2 (head 2).
        view2_conf: their confidence.
        matching_points: where these points were at the time of view 1 (head 3).
        matching_conf: their confidence.
    """

    view1_points: Tensor | None
    view1_conf: Tensor | None
    view2_points: Tensor | None
    view2_conf: Tensor | None
    matching_points: Tensor | None
    matching_conf: Tensor | None


def window_pairs(mode: WindowMode, num_frames: int) -> tuple[list[int], list[int]]:
    """Frames that are view 1 and view 2 of each pair of a window.

    * tracking: (frame t, first frame); head 3 tells where the first frame's points are at t.
    * fast_recon: (last frame, frame t); head 2 gives every frame in the last one's camera.
    * video_depth: (frame t, frame t); head 1 gives each frame in its own camera.

    Raises:
        ModelError: there is no such mode.
    """
    frames = list(range(num_frames))
    pairs = {
        "tracking": (frames, [0] * num_frames),
        "fast_recon": ([num_frames - 1] * num_frames, frames),
        "video_depth": (frames, frames),
    }
    if mode not in pairs:
        raise ModelError(f"mode is {mode!r}; expected one of {', '.join(pairs)}")
    return pairs[mode]


class PomatoNet(PomatoParts):
    """POMATO, pairwise or temporal.

    `pair` and `window` are for inference and keep no gradients; the parts (`encode`, `decode`,
    `head`) do, and every parameter can be trained.
    """

    @classmethod
    def from_file(
        cls,
        path: Path | str,
        encoder_heads: int | None = None,
        decoder_heads: int | None = None,
    ) -> PomatoNet:
        """Network in evaluation mode, float32, on the CPU, with the weights of a checkpoint.

        Args:
            path: `.pth` or `.safetensors`, see `load_checkpoint`.
            encoder_heads: attention heads, where they are not 64 channels wide.
            decoder_heads: likewise.

        Warns when the file holds tensors of no use here or parts had to be copied.

        Raises:
            ModelError: the file holds no complete, sound POMATO network.
        """
        checkpoint = load_checkpoint(path, encoder_heads, decoder_heads)
        if checkpoint.remarks:
            warnings.warn(f"{path}: {checkpoint.remarks}", stacklevel=2)
        # On the meta device nothing is initialised that the checkpoint is about to replace.
        with torch.device("meta"):
            net = cls(checkpoint.sizes)
        net.load_state_dict(checkpoint.tensors, assign=True)
        return net.eval()

    @torch.no_grad()
    def pair(self, image1: Tensor, image2: Tensor, chunk: int = DEFAULT_CHUNK) -> PairOutput:
        """All pointmaps of B pairs of images (B, 3, H, W) in [-1, 1]; the two sizes may differ.

        Raises:
            ModelError: this is no pairwise model, or the images do not fit.
        """
        self.require_pairwise()
        tokens1, tokens2 = self.decode(*self._encode_both(image1, image2))
        first = self.head(1, tokens1, chunk=chunk)
        second = self.head(2, tokens2, chunk=chunk)
        matching = self.head(3, tokens2, chunk=chunk)
        return PairOutput(*first, *second, *matching)

    def _encode_both(self, image1: Tensor, image2: Tensor) -> tuple[Features, Features]:
        if image1.shape != image2.shape:
            return self.encode(image1), self.encode(image2)
        both = self.encode(torch.cat((image1, image2)))
        return both[: len(image1)], both[len(image1) :]

    @torch.no_grad()
    def window(
        self,
        clip: Tensor,
        mode: WindowMode,
        heads: Sequence[int] = HEADS,
        chunk: int = DEFAULT_CHUNK,
    ) -> WindowOutput:
        """Pointmaps of clips (B, T, 3, H, W) in [-1, 1], T = `temporal_length`.

        Every frame is encoded once, whatever the mode.

        Raises:
            ModelError: this is no temporal model of T frames, or the clip does not fit.
        """
        check_images(clip, 5, "(B, T, 3, H, W)")
        check_heads(heads)
        num_clips, num_frames = clip.shape[:2]
        self.require_temporal(num_frames)
        views1, views2 = window_pairs(mode, num_frames)
        features = self.encode(clip.flatten(0, 1))
        starts = torch.arange(num_clips, device=clip.device)[:, None] * num_frames
        rows1, rows2 = (
            (starts + torch.tensor(views, device=clip.device)).flatten()
            for views in (views1, views2)
        )
        tokens1, tokens2 = self.decode(features[rows1], features[rows2])
        maps: list[Tensor | None] = []
        for number, tokens in zip(HEADS, (tokens1, tokens2, tokens2), strict=True):
            if number not in heads:
                maps += [None, None]
                continue
            pointmap = self.head(number, tokens, chunk=chunk)
            maps += [torch.unflatten(part, 0, (num_clips, num_frames)) for part in pointmap]
        return WindowOutput(*maps)

    def require_pairwise(self) -> None:
        """Require the pairwise model.

        Raises:
            ModelError: this is a temporal one.
        """
        if self.temporal_length is not None:
            raise ModelError(
                f"this is {self.sizes.description} where a pairwise model was asked for; "
                "give the file of the pairwise model, or use windows"
            )

    def require_temporal(self, num_frames: int) -> None:
        """Require a temporal model with windows of `num_frames`.

        Raises:
            ModelError: this is another model.
        """
        if self.temporal_length != num_frames:
            raise ModelError(
                f"this is {self.sizes.description} where a temporal model of {num_frames} frames "
                "was asked for; give the file of that model, or windows of another length"
            )
