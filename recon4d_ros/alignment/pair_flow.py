"""Optical flow that matched pointmaps imply, and where its two directions confirm each other."""

from __future__ import annotations

import torch
from torch import Tensor

from recon4d_ros.alignment import objectives
from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.errors import AlignmentError
from recon4d_ros.geometry import camera
from recon4d_ros.geometry.camera import Camera


def matched_flow(pairs: Pairs, K: Camera) -> Tensor:
    """Flow (E, H, W, 2) px of pair (i, j) from the pixels of j into i.

    NaN where the matched point is unknown or not in front of the camera.

    Args:
        pairs: predictions.
        K: camera of all frames.

    Raises:
        AlignmentError: the pairs match no pointmaps.
    """
    if pairs.matching is None:
        raise AlignmentError("the pairs have no flow: matching_2_in_1 was not given")
    known = (pairs.matching.weight > 0).unsqueeze(-1)
    points = torch.where(known, pairs.matching.points, torch.nan)
    return camera.project(points, K) - camera.pixel_grid(pairs.size, points.dtype)


def confirmed_matches(pairs: Pairs, flow_px: Tensor) -> Tensor:
    """True (E, H, W) where the flow of (i, j) and of (j, i) lead back to the start.

    A pair whose reverse is missing cannot be confirmed: there it is enough that the match is known
    and inside the image.

    Args:
        pairs: predictions.
        flow_px: (E, H, W, 2), see `matched_flow`.
    """
    target = camera.pixel_grid(pairs.size, flow_px.dtype) + flow_px
    within = camera.inside(target, pairs.size)
    place = {edge: number for number, edge in enumerate(map(tuple, pairs.edges.tolist()))}
    reverse = [place.get((j, i), -1) for i, j in pairs.edges.tolist()]
    has_reverse = torch.tensor([number >= 0 for number in reverse])
    if not bool(has_reverse.any()):
        return within
    back = flow_px[[number for number in reverse if number >= 0]]
    confirmed = within.clone()
    confirmed[has_reverse] = objectives.forward_backward(flow_px[has_reverse], back)
    return confirmed
