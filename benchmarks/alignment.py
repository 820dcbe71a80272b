"""Alignment of whole clips from pairs: beside POMATO's own, and on rendered scenes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import alignment_stream
from benchmarks.table import Row, Target
from benchmarks.workbench import ROOT, SHARED, Workbench
from recon4d_ros.alignment import PairAlignment, align_pairs
from recon4d_ros.alignment.offline import Method
from recon4d_ros.config import Config
from recon4d_ros.errors import MissingPrerequisiteError
from recon4d_ros.evaluation import trajectory
from recon4d_ros.evaluation.masks import MaskFrame, evaluate_masks
from recon4d_ros.evaluation.metrics import FloatArray
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import RenderedFrame, render

THREADS = 2
# Runs of which the fastest counts: a machine's other work only ever adds.
REPEATS = {"fast": 10, "adam": 2}
# The reference on this clip with its demo settings, on a CPU with two cores.
REFERENCE_SECONDS, REFERENCE_ATE = 5.9, 0.0078
NOTE = "8 frames of 64x48, 32 directed pairs; the reference took 5.9 s on two cores"
TARGETS: dict[Method, dict[str, Target]] = {
    "fast": {"seconds": Target(0.3), "ATE": Target(0.0070)},
    "adam": {"seconds": Target(REFERENCE_SECONDS), "ATE": Target(1.05 * REFERENCE_ATE)},
}
MASK_IOU = Target(0.75, better="higher")
RENDERED = ("demo", "static_room", "turning_camera")
WIDTH, FRAMES, EVERY = 128, 8, 3
# Where the renderer has its principal point.
CENTRED = Config().replaced({"offline.principal_point": "centre"})


@dataclass(frozen=True)
class Figures:
    """Errors of one trajectory: positions and motions, units of the truth, and degrees."""

    ate: float
    rpe: float
    rpe_deg: float


def benchmark(bench: Workbench) -> Iterator[Row]:
    """Errors and time of both methods beside the reference's."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield from _reference_clip()
        for name in RENDERED:
            yield from _rendered_clip(name)
        yield from alignment_stream.benchmark()
    finally:
        torch.set_num_threads(before)


def _reference_clip() -> Iterator[Row]:
    path = SHARED / "parity" / "ga_synth.npz"
    if not path.is_file():
        raise MissingPrerequisiteError(f"the benchmark needs {path.name} in ../shared/parity")
    with np.load(path) as held:
        clip = dict(held)
    peer = figures(clip["ref_final_c2w"], clip["gt_c2w"])
    for method, targets in TARGETS.items():
        results = [_aligned(clip, method) for _ in range(REPEATS[method])]
        seconds = min(result.report.seconds for result in results)
        ours = figures(results[0].T_world_cam.numpy(), clip["gt_c2w"])
        case = f"ga_synth, {method}"
        yield Row(
            "alignment",
            case,
            "seconds",
            seconds,
            targets["seconds"],
            {"reference": REFERENCE_SECONDS},
            f"fastest of {len(results)}, {THREADS} threads; {NOTE}",
        )
        yield Row("alignment", case, "ATE", ours.ate, targets["ATE"], {"reference": peer.ate})
        yield Row("alignment", case, "RPE", ours.rpe, None, {"reference": peer.rpe})
        yield Row("alignment", case, "RPE, deg", ours.rpe_deg, None, {"reference": peer.rpe_deg})
        focal = {"reference": float(clip["ref_final_focal"]), "truth": float(clip["gt_focal"])}
        yield Row("alignment", case, "focal length, px", results[0].intrinsics.fx, None, focal)
        saved = {"reference, saved": mask_iou(clip["ref_saved_masks"], clip["gt_dyn"])}
        found = mask_iou(results[0].dynamic_mask.numpy(), clip["gt_dyn"])
        yield Row("alignment", case, "mask IoU", found, MASK_IOU, saved)


def _aligned(clip: dict[str, FloatArray], method: Method) -> PairAlignment:
    return align_pairs(
        *(clip[name] for name in ("edges", "pts1", "conf1", "pts2", "conf2")),
        matching_2_in_1=clip["match2"],
        conf_matching=clip["conf_match"],
        method=method,
    )


def _rendered_clip(name: str) -> Iterator[Row]:
    """The same on a rendered scene: other motion, other noise, focal length unknown."""
    sys.path.insert(0, str(ROOT / "test"))
    from oracle_pairs import oracle_pairs

    scene = scenes.named(name, FRAMES * EVERY, WIDTH)
    indices = [EVERY * number for number in range(FRAMES)]
    shown: list[RenderedFrame] = [render(scene, index) for index in indices]
    result = align_pairs(**oracle_pairs(scene, indices), config=CENTRED)
    truth = np.stack([frame.T_world_cam.numpy() for frame in shown])
    path = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    poses = result.T_world_cam.numpy()
    case = f"{name}, fast"
    note = f"{FRAMES} frames of {WIDTH} px, 0.7 % along the ray, 0.36 px across"
    if path > 0:
        share = 100 * figures(poses, truth).ate / path
        yield Row("alignment", case, "ATE % of path", share, Target(1.0), note=note)
    # Turning needs no alignment, and a camera that only turns has none.
    turned = _motion_errors(trajectory.pair_by_index(truth, poses))[1]
    yield Row("alignment", case, "RPE, deg", turned, Target(0.1), note=note)
    yield Row("alignment", case, "seconds", result.report.seconds)
    moving = np.stack([frame.dynamic_mask.numpy() for frame in shown])
    found = result.dynamic_mask.numpy()
    if moving.any():
        yield Row("alignment", case, "mask IoU", mask_iou(found, moving), MASK_IOU)
    else:
        yield Row("alignment", case, "pixels flagged", float(found.mean()), Target(0.01))


def figures(found: FloatArray, truth: FloatArray) -> Figures:
    """RMSE after the best similarity; relative errors over one frame."""
    pairs = trajectory.align(trajectory.pair_by_index(truth, found))
    return Figures(_rms(trajectory.absolute_errors(pairs)), *_motion_errors(pairs))


def _motion_errors(pairs: trajectory.PosePairs) -> tuple[float, float]:
    """RMSE of translation and of rotation, degrees, from frame to frame."""
    index = trajectory.consecutive_pairs(len(pairs.truth))
    moved, turned = trajectory.relative_errors(pairs, index)
    return _rms(moved), _rms(turned)


def mask_iou(found: FloatArray, truth: FloatArray) -> float:
    """Mean intersection over union of the frames."""
    frames = [MaskFrame(t, f) for t, f in zip(truth, found, strict=True)]
    return evaluate_masks(frames).iou


def _rms(values: FloatArray) -> float:
    return float(np.sqrt((values**2).mean()))
