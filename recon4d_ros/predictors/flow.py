"""Dense flow between a frame and its past partners, both directions, with validity.

Only the flow to the nearest partner is searched (OpenCV DIS: Kroeger et al., "Fast Optical Flow
using Dense Inverse Search", ECCV 2016). Longer baselines are chains of such steps,
F_ac(x) = F_ab(x) + F_bc(x + F_ab(x)), which costs a resampling instead of a search and is as
accurate as a direct search at small motion and better at large motion. The nearest partner lies
so many frames back that the displacement is large against the noise of the flow and small enough
to be found. Measurements: docs/adr/0003-motion-masks.md.

Frames that are only shown (`skip`) get no flow, but may be partners: where every n-th frame is
dense, the dense frames before lie too far away to be found at once, and to be all that motion is
seen by.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from recon4d_ros.config import FlowConfig
from recon4d_ros.datatypes import FlowField
from recon4d_ros.errors import PredictorError
from recon4d_ros.geometry.exposure import matched

Grey = NDArray[np.uint8]
Flow = NDArray[np.float32]
Valid = NDArray[np.bool_]

# Lengths in the configuration are given for images of this long side.
REFERENCE_SIDE_PX = 512.0

# Partners among skipped frames: one a step away, as every nearest one is, one up to so many steps.
BRIDGE_STEPS = 3

# Where less of the flow than this is consistent, and the view moved by more than this share of its
# long side, the search is done once more from there: by itself it finds no more than a tenth.
_POOR_SHARE = 0.75
_JUMP_SHARE = 0.05

STRUCTURE_WINDOW_PX = 7
STRUCTURE_BLUR_PX = 0.8

# OpenCV's type stubs know no None for an array left out.
_ABSENT = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class _Link:
    """Flow from a frame to one of its past partners and back, with both images' structure."""

    index: int
    partner: int
    to_past: Flow
    to_past_valid: Valid
    from_past: Flow
    from_past_valid: Valid
    structure: Flow
    partner_structure: Flow

    def fields(self) -> tuple[FlowField, FlowField]:
        """Both directions as they travel between the rooms."""
        there = (self.index, self.partner, self.to_past, self.to_past_valid, self.structure)
        back = (
            self.partner,
            self.index,
            self.from_past,
            self.from_past_valid,
            self.partner_structure,
        )
        return _field(*there), _field(*back)


@dataclass(frozen=True, eq=False)
class _Past:
    """What is kept of a past frame; links and structure of one that has flow itself."""

    index: int
    grey: Grey
    structure: Flow
    links: tuple[_Link, ...] = ()


class FlowHistory:
    """Flow of a stream of grey images.

    Keeps `flow.max_step` frames with flow and three times as many that were skipped since.
    """

    def __init__(self, config: FlowConfig) -> None:
        """Make the estimator; the stream starts empty."""
        self._config = config
        self._past: deque[_Past] = deque(maxlen=config.max_step)
        self._skipped: deque[tuple[int, Grey]] = deque(maxlen=BRIDGE_STEPS * config.max_step)
        self._search = dense_inverse_search(config)

    def push(self, index: int, grey: Grey) -> tuple[FlowField, ...]:
        """Flow between the new frame and its past partners.

        Args:
            index: number of the frame, larger than any before.
            grey: (H, W) uint8 on the dense grid, the same size for all frames.

        Returns:
            For each partner, nearest first: from the new frame to it, then back. Empty for the
            first frame; fewer partners than configured at the beginning of a stream.

        Raises:
            PredictorError: the image is not grey uint8, or its size or index does not fit the
                stream; the history is unchanged.
        """
        self._check(index, grey)
        structure = structure_tensor(grey)
        newest = _Past(index, grey.copy(), structure)
        links = self._links(newest)[: self._config.num_partners]
        self._past.append(replace(newest, links=links))
        self._skipped.clear()
        return tuple(field for link in links for field in link.fields())

    def skip(self, index: int, grey: Grey) -> None:
        """Show a frame that needs no flow itself.

        Raises:
            PredictorError: as of `push`.
        """
        self._check(index, grey)
        self._skipped.append((index, grey.copy()))

    def reset(self) -> None:
        """Forget all frames."""
        self._past.clear()
        self._skipped.clear()

    def _links(self, newest: _Past) -> tuple[_Link, ...]:
        """To the nearest partner, and over it to farther ones."""
        if not self._past:
            return ()
        bridges = self._bridges(newest.index)
        stations = [*bridges, self._past[-1] if bridges else self._partner(newest.index)]
        links = [self._search_both(newest, stations[0])]
        for near, far in itertools.pairwise(stations):
            links.append(_chained(links[-1], self._search_both(near, far)))
        return (*links, *(_chained(links[-1], link) for link in stations[-1].links))

    def _bridges(self, index: int) -> list[_Past]:
        """Skipped frames on the way to the last dense one, nearest first; none where that is near.

        One at a partner's distance, and one as far as motion is usually seen by.
        """
        frames = [self._past[-1].index, *(number for number, _ in self._skipped)]
        near, far = self._at_a_step(index, frames), 0
        if near > 0 and self._past[-1].links:
            far = self._at_a_step(index, frames[:near], BRIDGE_STEPS)
        passed = [self._skipped[place - 1] for place in (near, far) if place > 0]
        return [_Past(number, grey, structure_tensor(grey)) for number, grey in passed]

    def _check(self, index: int, grey: Grey) -> None:
        if grey.ndim != 2 or grey.dtype != np.uint8 or min(grey.shape) < 16:
            raise PredictorError(
                f"flow needs a grey uint8 image of at least 16 x 16, got shape {grey.shape} of "
                f"{grey.dtype}; convert the frame first"
            )
        if not self._past:
            return
        last = self._past[-1]
        if grey.shape != last.grey.shape:
            raise PredictorError(
                f"frame {index} has size {grey.shape}, the stream {last.grey.shape}; "
                "reset the history when the camera changes size"
            )
        newest = self._skipped[-1][0] if self._skipped else last.index
        if index <= newest:
            raise PredictorError(
                f"frame {index} came after frame {newest}; frames must come in order"
            )

    def _partner(self, index: int) -> _Past:
        """The past frame that should lie `flow.step_motion_px` away, at the present speed."""
        return self._past[self._at_a_step(index, [past.index for past in self._past])]

    def _at_a_step(self, index: int, frames: list[int], steps: int = 1) -> int:
        """Place of the oldest frame no more than some steps away; else the newest one's."""
        last = self._past[-1]
        if not last.links:
            return len(frames) - 1
        nearest = last.links[0]
        scale = max(last.grey.shape) / REFERENCE_SIDE_PX
        speed = float(np.sqrt(np.mean(_square(nearest.to_past)))) / scale
        allowed_px = steps * self._config.step_motion_px * (nearest.index - nearest.partner)
        near = (place for place, at in enumerate(frames) if (index - at) * speed <= allowed_px)
        return next(near, len(frames) - 1)

    def _search_both(self, newer: _Past, older: _Past) -> _Link:
        """As the images are; where that finds little, from where the view may have jumped to."""
        images = matched(torch.from_numpy(newer.grey), torch.from_numpy(older.grey))
        here, there = (image.numpy() for image in images)
        found = []
        for shift in itertools.chain([np.zeros(2, np.float32)], self._jumps(newer, older)):
            to_past = self._search_flow(here, _moved(there, shift)) + shift
            from_past = self._search_flow(there, _moved(here, -shift)) - shift
            found.append(self._linked(newer, older, to_past, from_past))
            if found[-1].to_past_valid.mean() >= _POOR_SHARE:
                break
        return max(found, key=lambda link: link.to_past_valid.sum())

    def _jumps(self, newer: _Past, older: _Past) -> Iterator[Flow]:
        """Shifts of the view too large to be searched: by its looks, and as it went before."""
        least = _JUMP_SHARE * max(newer.grey.shape)
        shift = dominant_shift(newer.grey, older.grey)
        if np.abs(shift).max() > least:
            yield shift
        if self._past and self._past[-1].links:
            before = self._past[-1].links[0]
            speed = np.median(before.to_past.reshape(-1, 2), axis=0)
            speed /= before.index - before.partner
            shift = np.rint(speed * (newer.index - older.index))
            if np.abs(shift).max() > least:
                yield shift

    def _linked(self, newer: _Past, older: _Past, to_past: Flow, from_past: Flow) -> _Link:
        return _Link(
            newer.index,
            older.index,
            to_past,
            consistent(to_past, from_past, self._config),
            from_past,
            consistent(from_past, to_past, self._config),
            newer.structure,
            older.structure,
        )

    def _search_flow(self, source: Grey, target: Grey) -> Flow:
        return np.asarray(self._search.calc(source, target, _ABSENT), dtype=np.float32)


def dominant_shift(source: Grey, target: Grey) -> Flow:
    """Whole px (2,) by which most of a view moved, by phase correlation of quarter-sized images.

    Args:
        source: (H, W) uint8.
        target: (H, W) uint8; target(x + shift) looks like source(x).
    """
    height, width = (max(16, side // 4) for side in source.shape)
    images = [
        cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        for grey in (source, target)
    ]
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    shift, _ = cv2.phaseCorrelate(images[0], images[1], window)
    share = np.array(shift) / (width, height)
    return np.asarray(np.rint(share * source.shape[::-1]), np.float32)


def _moved(grey: Grey, shift: Flow) -> Grey:
    """The image (x + shift); beyond its border, the border goes on."""
    if not shift.any():
        return grey
    M = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])
    size = grey.shape[::-1]
    moved = cv2.warpAffine(grey, M, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def structure_tensor(grey: Grey) -> Flow:
    """Mean products of the image gradients around each pixel.

    Args:
        grey: (H, W) uint8.

    Returns:
        (H, W, 3) float32: xx, xy, yy in grey levels squared per px squared.
    """
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), STRUCTURE_BLUR_PX)
    gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    products = np.stack([gx * gx, gx * gy, gy * gy], axis=-1)
    window = (STRUCTURE_WINDOW_PX, STRUCTURE_WINDOW_PX)
    return np.asarray(cv2.boxFilter(products, -1, window), dtype=np.float32)


def consistent(flow: Flow, back: Flow, config: FlowConfig) -> Valid:
    """Forward-backward check: |F(x) + B(x + F(x))| small, and x + F(x) inside the image.

    Args:
        flow: (H, W, 2) px, from the image that is judged.
        back: (H, W, 2) px, the other direction.
        config: tolerance.

    Returns:
        (H, W) bool.
    """
    landing = _landing(flow)
    mismatch = flow + _sample(back, landing)
    tolerance = config.consistency_px * max(flow.shape[:2]) / REFERENCE_SIDE_PX
    bound = np.maximum(tolerance**2, config.consistency_ratio**2 * _square(flow))
    return np.asarray((_square(mismatch) <= bound) & _inside(landing))


def _chained(near: _Link, far: _Link) -> _Link:
    """Link from the newest frame over the partner of `near` to the partner of `far`."""
    there = _chain(near.to_past, near.to_past_valid, far.to_past, far.to_past_valid)
    back = _chain(far.from_past, far.from_past_valid, near.from_past, near.from_past_valid)
    structures = (near.structure, far.partner_structure)
    return _Link(near.index, far.partner, *there, *back, *structures)


def _chain(
    first: Flow, first_valid: Valid, second: Flow, second_valid: Valid
) -> tuple[Flow, Valid]:
    """Flow of two steps; valid where both steps are, on the way of the pixel."""
    landing = _landing(first)
    reached = cv2.remap(second_valid.view(np.uint8), landing, _ABSENT, cv2.INTER_NEAREST)
    return first + _sample(second, landing), np.asarray(first_valid & (reached > 0))


def dense_inverse_search(config: FlowConfig) -> cv2.DISOpticalFlow:
    """OpenCV's search; it keeps its pyramids, and serves one thread."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(config.finest_scale)
    search.setPatchStride(config.patch_stride)
    search.setVariationalRefinementIterations(config.refinement_iterations)
    return search


def _landing(flow: Flow) -> Flow:
    height, width = flow.shape[:2]
    landing: Flow = flow.copy()
    landing[..., 0] += np.arange(width, dtype=np.float32)
    landing[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    return landing


def _sample(flow: Flow, uv: Flow) -> Flow:
    sampled = cv2.remap(flow, uv, _ABSENT, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, dtype=np.float32)


def _inside(uv: Flow) -> Valid:
    height, width = uv.shape[:2]
    u, v = uv[..., 0], uv[..., 1]
    return np.asarray((u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1))


def _square(flow: Flow) -> NDArray[np.float32]:
    return np.asarray(flow[..., 0] ** 2 + flow[..., 1] ** 2)


def _field(source: int, target: int, flow: Flow, valid: Valid, structure: Flow) -> FlowField:
    tensors = (torch.from_numpy(array) for array in (flow, valid, structure))
    return FlowField(source, target, *tensors)
