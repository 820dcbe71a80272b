"""One picture of a run: input, depth, what moves, and the map from two views with the camera path.

Drawn on a bare Matplotlib figure, so no display is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from recon4d_ros.datatypes import PointCloud
from recon4d_ros.errors import OutputError

FloatArray = npt.NDArray[np.float64]

_PAPER, _INK, _NIGHT = "#ffffff", "#22262b", "#14171b"
_MOVING = np.array([255.0, 64.0, 48.0])
_PATH_COLOURS = "plasma"
_VIEW_PX = (620, 930)
_MAX_SHOWN_POINTS = 400_000


@dataclass(frozen=True, eq=False)
class Summary:
    """What the picture shows.

    Attributes:
        title: headline.
        subtitle: figures in one line.
        rgb: (H, W, 3) uint8, one frame.
        depth: (h, w) float32, its depth, NaN where unknown.
        mask: (h, w) bool, what moves in it.
        cloud: the static map.
        T_map_cam: (N, 4, 4) float64, the camera's poses in the map, oldest first.
        unit: of lengths, for example "m".
    """

    title: str
    subtitle: str
    rgb: Tensor
    depth: Tensor
    mask: Tensor
    cloud: PointCloud
    T_map_cam: Tensor
    unit: str


def draw_summary(path: Path, summary: Summary) -> None:
    """Draw the picture and save it as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    figure = Figure(figsize=(16, 10.4), dpi=110, facecolor=_PAPER)
    figure.text(0.02, 0.965, summary.title, fontsize=19, weight="bold", color=_INK, va="center")
    figure.text(0.98, 0.965, summary.subtitle, fontsize=12, color=_INK, ha="right", va="center")
    top = figure.add_gridspec(1, 3, left=0.02, right=0.98, top=0.905, bottom=0.55, wspace=0.04)
    low = figure.add_gridspec(1, 2, left=0.02, right=0.98, top=0.49, bottom=0.02, wspace=0.025)
    _draw_input(figure.add_subplot(top[0]), summary)
    _draw_depth(figure.add_subplot(top[1]), summary)
    _draw_mask(figure.add_subplot(top[2]), summary)
    scene = _Scene.of(summary)
    above = figure.add_subplot(low[0])
    view = _View.from_above(scene)
    _draw_map(above, scene, view, f"map from above, {len(summary.cloud.points):,} points")
    _draw_scale_bar(above, view.px_per_unit, summary.unit)
    behind = figure.add_subplot(low[1])
    _draw_map(behind, scene, _View.from_behind(scene), "map from behind the camera")
    try:
        figure.savefig(path, format="png", facecolor=_PAPER)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _draw_input(axes: Axes, summary: Summary) -> None:
    _bare(axes, "input")
    axes.imshow(summary.rgb.numpy())


def _draw_depth(axes: Axes, summary: Summary) -> None:
    depth = summary.depth.numpy()
    known = depth[np.isfinite(depth)]
    _bare(axes, f"depth [{summary.unit}], {known.size / depth.size:.0%} of the pixels")
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    shown = colormaps["turbo_r"].with_extremes(bad="#d9dce0")
    height, width = summary.rgb.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    image = axes.imshow(depth, cmap=shown, vmin=low, vmax=high, extent=extent)
    inset = axes.inset_axes((0.965, 0.05, 0.022, 0.9))
    bar = axes.figure.colorbar(image, cax=inset)
    inset.yaxis.set_ticks_position("left")
    bar.outline.set_visible(False)
    for label in inset.get_yticklabels():
        label.set(color="white", fontsize=9, weight="bold")
        label.set_path_effects([_outline()])


def _draw_mask(axes: Axes, summary: Summary) -> None:
    share = float(summary.mask.float().mean())
    _bare(axes, f"moving, {share:.1%} of the pixels")
    height, width = summary.rgb.shape[:2]
    mask = _upsampled(summary.mask, (height, width))
    grey = summary.rgb.numpy().astype(np.float64).mean(axis=-1, keepdims=True)
    image = np.repeat(0.35 * 255 + 0.55 * grey, 3, axis=-1)
    image[mask] = 0.35 * image[mask] + 0.65 * _MOVING
    axes.imshow(image.clip(0, 255).astype(np.uint8))
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=["#b80f0a"], linewidths=1.0)


def _upsampled(mask: Tensor, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Nearest sample of a mask on a finer grid."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return np.asarray(mask.numpy()[rows[:, None], columns[None]], np.bool_)


@dataclass(frozen=True, eq=False)
class _Scene:
    """Map and path, turned so that x is right, y forward and z up for the mean camera.

    What hangs over the camera (a ceiling) is taken off, since it would hide the rest.
    """

    points: FloatArray
    colours: npt.NDArray[np.uint8]
    path: FloatArray

    @classmethod
    def of(cls, summary: Summary) -> _Scene:
        points = summary.cloud.points.numpy().astype(np.float64)
        colours = summary.cloud.rgb.numpy()
        step = max(1, len(points) // _MAX_SHOWN_POINTS)
        poses = summary.T_map_cam.numpy()
        R_view_map = _mean_camera(poses)
        path = poses[:, :3, 3] @ R_view_map.T
        points, colours = points[::step] @ R_view_map.T, colours[::step]
        low, high = _box(points, path)
        is_below = points[:, 2] <= path[:, 2].max(initial=low[2]) + 0.12 * (high[2] - low[2])
        return cls(points[is_below], colours[is_below], path)


def _box(points: FloatArray, path: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Corners of the box of the path and of nearly all points."""
    parts = [path]
    if len(points):
        parts.append(np.percentile(points, (1.0, 99.0), axis=0))
    corners = np.concatenate(parts) if any(map(len, parts)) else np.zeros((1, path.shape[1]))
    return corners.min(axis=0), corners.max(axis=0)


@dataclass(frozen=True, eq=False)
class _View:
    """Where points (P) and path (N) fall in a panel, px; nearness orders what hides what."""

    points_px: FloatArray
    path_px: FloatArray
    nearness: FloatArray
    px_per_unit: float

    @classmethod
    def fitted(cls, points: FloatArray, path: FloatArray, nearness: FloatArray) -> _View:
        """Scale and shift plane coordinates, x right and y up, so that they fill the panel."""
        low, high = _box(points, path)
        size = np.array(_VIEW_PX[::-1], np.float64)
        scale = float((0.92 * size / np.maximum(high - low, 1e-9)).min())
        offset = size / 2 - scale * np.array([1.0, -1.0]) * (low + high) / 2
        flip = scale * np.array([1.0, -1.0])
        return cls(points * flip + offset, path * flip + offset, nearness, scale)

    @classmethod
    def from_above(cls, scene: _Scene) -> _View:
        """Orthographic, forward is up."""
        return cls.fitted(scene.points[:, :2], scene.path[:, :2], scene.points[:, 2])

    @classmethod
    def from_behind(cls, scene: _Scene) -> _View:
        """Perspective, from behind the camera, above it and a little to its right."""
        low, high = _box(scene.points, scene.path)
        pitch, yaw = np.deg2rad(30.0), np.deg2rad(-24.0)
        level = np.cos(pitch) * np.array([np.sin(yaw), np.cos(yaw), 0.0])
        look = level - np.array([0.0, 0.0, np.sin(pitch)])
        right = np.cross(look, [0.0, 0.0, 1.0]) / np.cos(pitch)
        turn = np.stack([right, np.cross(right, look), look])
        distance = max(float(np.linalg.norm(high - low)), 1e-6)
        eye = (low + high) / 2 - distance * look

        def place(points: FloatArray) -> tuple[FloatArray, FloatArray]:
            seen = (points - eye) @ turn.T
            depth = np.maximum(seen[:, 2], 0.05 * distance)
            return seen[:, :2] / depth[:, None], depth

        points, depth = place(scene.points)
        return cls.fitted(points, place(scene.path)[0], -depth)


def _mean_camera(poses: FloatArray) -> FloatArray:
    """Rotation from the map to the axes of the mean camera: right, forward, up."""
    if not len(poses):
        return np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    up = -poses[:, :3, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    forward = poses[:, :3, 2].mean(axis=0)
    forward -= (forward @ up) * up
    length = np.linalg.norm(forward)
    # A camera that turned a full circle has no mean direction; any level one will do.
    forward = forward / length if length > 1e-3 else np.cross(up, poses[0, :3, 0])
    return np.stack([np.cross(forward, up), forward, up])


def _draw_map(axes: Axes, scene: _Scene, view: _View, title: str) -> None:
    _bare(axes, title)
    axes.imshow(_splat(view.points_px, view.nearness, scene.colours))
    _draw_path(axes, view.path_px)


def _splat(
    uv: FloatArray, nearness: FloatArray, colours: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Points as small squares, the nearest on top, on the dark ground."""
    height, width = _VIEW_PX
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.array([int(_NIGHT[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    # Squares whose areas add up to nearly twice the panel leave few holes in a surface.
    side = int(np.clip(np.ceil(np.sqrt(1.8 * height * width / max(len(uv), 1))), 2, 7))
    order = np.argsort(nearness, kind="stable")
    base, colours = np.rint(uv[order]).astype(np.int64), colours[order]
    offsets = np.arange(side) - side // 2
    for dx, dy in ((dx, dy) for dx in offsets for dy in offsets):
        x, y = base[:, 0] + dx, base[:, 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        image[y[inside], x[inside]] = colours[inside]
    return image


def _draw_path(axes: Axes, uv: FloatArray) -> None:
    """The camera's path, coloured by time, with its two ends."""
    axes.set_autoscale_on(False)
    if not len(uv):
        return
    segments = np.stack([uv[:-1], uv[1:]], axis=1)
    colours = colormaps[_PATH_COLOURS](np.linspace(0.25, 0.98, max(len(segments), 1)))
    axes.add_collection(LineCollection(list(segments), colors="white", linewidths=5.0, alpha=0.35))
    axes.add_collection(LineCollection(list(segments), colors=list(colours), linewidths=2.6))
    for end, colour, label in ((0, colours[0], "start"), (-1, colours[-1], "end")):
        axes.plot(*uv[end], "o", ms=8, color=colour, mec="white", mew=1.4)
        axes.annotate(
            label,
            uv[end],
            xytext=(9, -4 if end else 9),
            textcoords="offset points",
            color="white",
            fontsize=10,
            path_effects=[_outline()],
        )


def _draw_scale_bar(axes: Axes, px_per_unit: float, unit: str) -> None:
    height, width = _VIEW_PX
    raw = 0.2 * width / px_per_unit
    power = 10.0 ** np.floor(np.log10(raw))
    length = max(step * power for step in (1.0, 2.0, 5.0) if step * power <= raw)
    left, row = 24, height - 24
    axes.plot([left, left + length * px_per_unit], [row, row], color="white", lw=3)
    axes.text(left, row - 12, f"{length:g} {unit}", color="white", fontsize=11)


def _outline() -> withStroke:
    return withStroke(linewidth=2.5, foreground=_NIGHT)


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12.5, color=_INK, pad=6)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
