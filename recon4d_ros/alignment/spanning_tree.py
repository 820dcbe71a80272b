"""First poses of all frames of a clip: the most confident pairs, chained.

Source: DUSt3R, arXiv 2312.14132, section 3.4 and its code's practice: a maximum spanning tree over
the pairs, each tied to what is placed already by a similarity of its points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from recon4d_ros.alignment.pairs import Pairs
from recon4d_ros.alignment.samples import Samples
from recon4d_ros.alignment.window_poses import consensus_pose
from recon4d_ros.errors import AlignmentError, GeometryError
from recon4d_ros.geometry import robust, se3, sim3
from recon4d_ros.geometry.camera import weiszfeld_focal

# Pixels and agreement that a pose from points and pixels needs.
_PNP_POINTS, _PNP_TRIALS, _PNP_SHARE = 6, 100, 0.3
_PNP_PX = 5.0 / 512  # over the long side of the image
# 32 samples of three find one without a wrong point among 45 % of them almost surely.
_TRIALS, _REFINEMENTS = 32, 2


@dataclass(frozen=True, eq=False)
class Chain:
    """First guess of everything but dense depth.

    Attributes:
        T_world_cam: (N, 4, 4) float64; frame 0 is the origin.
        log_scale: (E,) float64, map units per unit of the pair; the mean is log 0.5.
        focal_px: () float64.
        log_depth: (N, P) float64 at the samples; NaN where the point is not in front.
    """

    T_world_cam: Tensor
    log_scale: Tensor
    focal_px: Tensor
    log_depth: Tensor


def focal_length(pairs: Pairs, samples: Tensor, centre_px: tuple[float, float]) -> Tensor:
    """Focal length () float64, px, that the points of first views speak of.

    Weiszfeld's reweighting of sum ||p - f (x, y) / z|| for each pair, then the median over frames
    of each frame's mean.

    Args:
        pairs: predictions.
        samples: (S,) int64, flat pixels to use.
        centre_px: principal point.
    """
    width = pairs.size[1]
    points = pairs.first.points.flatten(1, 2)[:, samples].double()
    weight = pairs.first.weight.flatten(1)[:, samples].double()
    uv = torch.stack([samples % width, samples // width], dim=-1).double()
    pixel = uv - uv.new_tensor(centre_px)
    ray = points[..., :2] / points[..., 2:]
    focal = weiszfeld_focal(pixel, ray, weight)
    usable = focal[focal.isfinite() & (focal > 0)], pairs.edges[focal.isfinite() & (focal > 0), 0]
    if not len(usable[0]):
        raise AlignmentError(
            "the points of no pair spread around the principal point as a camera's do, so no "
            "focal length can be had from them; give intrinsics"
        )
    frames = [usable[0][usable[1] == frame].mean() for frame in torch.unique(usable[1])]
    return robust.median(torch.stack(frames))


def spanning_tree(pairs: Pairs) -> list[int]:
    """Pairs (their places in `pairs.edges`) of the most confident tree, best first.

    The score of a pair is the product of the mean confidences of its views.
    """
    first = pairs.first.weight.exp().flatten(1).mean(dim=1)
    second = pairs.second.weight.exp().flatten(1).mean(dim=1)
    score = (first * second).double().numpy()
    best: dict[tuple[int, int], int] = {}
    for place, (i, j) in enumerate(pairs.edges.tolist()):
        key = (min(i, j), max(i, j))
        if i != j and (key not in best or score[place] > score[best[key]]):
            best[key] = place
    i, j = np.array(list(best), dtype=np.int64).reshape(-1, 2).T
    costs = -score[list(best.values())]
    graph = coo_array((costs, (i, j)), shape=(pairs.num_frames, pairs.num_frames))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    places = [best[(int(a), int(b))] for a, b in zip(*tree.coords, strict=True)]
    return sorted(places, key=lambda place: -score[place])


def chained(
    pairs: Pairs, samples: Samples, focal_px: Tensor, centre: tuple[float, float]
) -> Chain:
    """Chain the tree's pairs from the best one on.

    Raises:
        AlignmentError: a pair's points do not fix a similarity, or a frame's do not fix a pose.
    """
    points: dict[int, Tensor] = {}
    poses: dict[int, Tensor] = {}
    waiting = spanning_tree(pairs)
    if not waiting:  # a single frame, paired with itself
        points[0], poses[0] = samples.first(pairs, 0)[0], torch.eye(4, dtype=torch.float64)
    while waiting:
        place = next((p for p in waiting if not points or _known(pairs, p, points)), waiting[0])
        waiting.remove(place)
        _attach(pairs, samples, place, points, poses)
    for frame in sorted(set(points) - set(poses)):
        poses[frame] = _missing_pose(pairs, samples, frame, points[frame], focal_px, centre)
    T = torch.stack([poses[frame] for frame in range(pairs.num_frames)])
    world = torch.stack([points[frame] for frame in range(pairs.num_frames)])
    return _normalised(pairs, samples, T, world, focal_px)


def _known(pairs: Pairs, place: int, points: dict[int, Tensor]) -> bool:
    return any(frame in points for frame in pairs.edges[place].tolist())


def _attach(
    pairs: Pairs,
    samples: Samples,
    place: int,
    points: dict[int, Tensor],
    poses: dict[int, Tensor],
) -> None:
    """Place one pair by the frame that is placed already, and with it the other one."""
    i, j = pairs.edges[place].tolist()
    own, own_weight = samples.first(pairs, place)
    other, other_weight = samples.second(pairs, place)
    if not points:
        S = torch.eye(4, dtype=torch.float64)
        points[i] = own
    elif i in points:
        S = _similarity(pairs, place, own, points[i], own_weight)
    else:
        S = _similarity(pairs, place, other, points[j], other_weight)
        points[i] = se3.transform(S, own)
    points.setdefault(j, se3.transform(S, other))
    poses.setdefault(i, sim3.split(S)[1])


def _similarity(
    pairs: Pairs, place: int, source: Tensor, target: Tensor, weight: Tensor
) -> Tensor:
    i, j = pairs.edges[place].tolist()
    try:
        return sim3.fit_robust(source, target, weight, trials=_TRIALS, refinements=_REFINEMENTS).S
    except GeometryError as error:
        raise AlignmentError(
            f"the points of pair ({i}, {j}) do not fix how it lies in the world: {error}; give "
            "pairs of frames that see more of the same surface"
        ) from error


def _missing_pose(
    pairs: Pairs,
    samples: Samples,
    frame: int,
    world: Tensor,
    focal_px: Tensor,
    centre: tuple[float, float],
) -> Tensor:
    """Pose of a frame that is placed but was never the first of a pair in the tree."""
    own = (pairs.edges[:, 0] == frame).nonzero().flatten().tolist()
    if not own:
        return _pose_by_pixels(samples, frame, world, focal_px, centre, pairs.size)
    place = max(own, key=lambda p: float(pairs.first.weight[p].mean()))
    points, weight = samples.first(pairs, place)
    return sim3.split(_similarity(pairs, place, points, world, weight))[1]


def _pose_by_pixels(
    samples: Samples,
    frame: int,
    world: Tensor,
    focal_px: Tensor,
    centre: tuple[float, float],
    size: tuple[int, int],
) -> Tensor:
    """Pose by points and pixels; never a guess."""
    used = samples.valid[frame].numpy()
    p, uv = world.numpy()[used], samples.uv[frame].numpy()[used]
    f = float(focal_px)
    K = np.array([[f, 0.0, centre[0]], [0.0, f, centre[1]], [0.0, 0.0, 1.0]])
    inliers, T_cam_world = np.zeros(0, dtype=np.int64), None
    if len(p) >= _PNP_POINTS:
        max_error_px = max(1.0, _PNP_PX * max(size))
        inliers, T_cam_world = consensus_pose(p, uv, K, max_error_px, _PNP_TRIALS)
    if T_cam_world is None or len(inliers) < max(_PNP_POINTS, _PNP_SHARE * len(p)):
        raise AlignmentError(
            f"frame {frame} has no pose: it is never the first of a pair, and of its {len(p)} "
            f"points {len(inliers)} agree on a pose; give the pair ({frame}, ...) as well"
        )
    return se3.inverse(torch.from_numpy(T_cam_world))


def _normalised(
    pairs: Pairs, samples: Samples, T: Tensor, world: Tensor, focal_px: Tensor
) -> Chain:
    """Frame 0 becomes the origin and the mean of the logarithms of the scales log 0.5."""
    T_0_world = se3.inverse(T[0])
    T, world = T_0_world @ T, se3.transform(T_0_world, world.flatten(0, 1)).reshape(world.shape)
    cam = se3.transform(se3.inverse(T)[:, None], world)
    z = torch.where(samples.valid & (cam[..., 2] > 0), cam[..., 2], torch.nan)
    ratio = (
        z.log()[pairs.edges[:, 0]]
        - samples.gather(pairs.first.points, pairs.edges[:, 0])[..., 2].log()
    )
    weight = samples.gather(pairs.first.weight, pairs.edges[:, 0])
    ratio = torch.where(weight > 0, ratio, torch.nan)
    log_scale = ratio.nanmedian(dim=1).values
    log_scale = torch.where(log_scale.isfinite(), log_scale, log_scale.nanmean())
    shift = np.log(0.5) - log_scale.mean()
    T = T.clone()
    T[:, :3, 3] *= shift.exp()
    return Chain(T, log_scale + shift, focal_px, z.log() + shift)
