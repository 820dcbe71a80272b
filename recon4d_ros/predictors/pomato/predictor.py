"""POMATO behind the `PointmapPredictor` door. See docs/adr/0005-pomato-streaming.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from recon4d_ros.config import Config
from recon4d_ros.datatypes import (
    Frame,
    FramePrediction,
    Intrinsics,
    IntrinsicsSource,
    Window,
    WindowPrediction,
)
from recon4d_ros.errors import ConfigError, PredictorError
from recon4d_ros.geometry.image_grid import Size, resize_intrinsics
from recon4d_ros.networks.pomato import Features
from recon4d_ros.networks.pomato.sizes import PATCH
from recon4d_ros.predictors.pomato.edge import RawEdge, read_edge, trusted_pixels
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.focal import weiszfeld_focal
from recon4d_ros.predictors.pomato.image_size import (
    camera_of_focal,
    network_image,
    network_size,
)
from recon4d_ros.predictors.pomato.pairwise import PairwiseModel
from recon4d_ros.predictors.pomato.seen import (
    Seen,
    frame_prediction,
    reread,
    window_prediction,
)
from recon4d_ros.predictors.pomato.temporal import Held, Ring, TemporalModel

Kept = TypeVar("Kept")

# Focal length over the long side of a camera of which neither messages nor maps tell anything.
_USUAL_FOCAL = 0.95
# Frames in a row without a pose after which the next gauge begins: one blurred image is no loss.
_LOST_AFTER = 3
# Frames kept for the pairwise model's partners.
_MIN_KEPT = 8


@dataclass(frozen=True, eq=False)
class _Camera:
    """The stream's images and the network's grid."""

    input_size: Size
    given: Intrinsics | None
    grid: Intrinsics
    source: IntrinsicsSource


@dataclass(frozen=True, eq=False)
class _State:
    """Everything that changes from frame to frame; replaced as a whole.

    Attributes:
        gauge: number of the present gauge.
        key: number of the held keyframe.
        num_lost: frames in a row without a pose.
        seen: the latest frames and the keyframe.
        features: of the frames that may still be decoded, and of the keyframe, on the device.
        ring: of the temporal model.
    """

    gauge: int = 0
    key: int | None = None
    num_lost: int = 0
    seen: Mapping[int, Seen] = field(default_factory=dict)
    features: Mapping[int, Features] = field(default_factory=dict)
    ring: Ring | None = None


class PomatoPredictor:
    """Pointmaps by a POMATO network, pairwise or temporal, on torch or anything alike.

    Every frame is encoded once. Lengths are in the unit of the gauge's first map: each call of
    the network has a unit of its own, which the depth of the keyframe gives away.
    """

    name = "pomato"
    maps_aside = False

    def __init__(self, config: Config, engine: Engine) -> None:
        """Use a network; sizes and camera are taken from the first frame.

        Raises:
            ConfigError: the configuration does not fit the network.
        """
        self._config = config.pomato
        self._engine = engine
        length = engine.network.temporal_length
        check_fits(config, length)
        self._temporal = None if length is None else TemporalModel(engine, length)
        self._model = self._temporal or PairwiseModel(engine)
        self._kept = max(config.window.size, _MIN_KEPT)
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        self._camera: _Camera | None = None
        self._state = _State()

    @property
    def description(self) -> dict[str, str]:
        """Facts for the diagnostics."""
        length = self._engine.network.temporal_length
        kind = "pairwise" if length is None else f"temporal, {length} frames, {self._config.mode}"
        return {
            "predictor": f"pomato ({kind})",
            "device": str(self._engine.device),
            "precision": str(self._engine.dtype).removeprefix("torch."),
            "batch": str(self._engine.batch),
            "out_of_memory": str(self._engine.num_out_of_memory),
        }

    def warm_up(self, size: Size) -> None:
        """One inference on a grey image (height, width), so that the first frame is not late.

        Raises:
            PredictorError: the device has too little memory.
            ModelError: the network cannot see images of this size.
        """
        grid = network_size(size, self._config.long_side)
        features = self._engine.encode(torch.full((*grid, 3), 128, dtype=torch.uint8))
        self._model.alone(0, features)

    def track(self, frame: Frame, dense: bool = True) -> FramePrediction:
        """Pose, depth and correspondences of a frame, from past frames only.

        Args:
            frame: the next frame.
            dense: False: its pose only; head 3 is spared.

        Raises:
            PredictorError: the frame's size or intrinsics differ from those before, or the device
                has too little memory.
        """
        size = self._checked_size(frame)
        features = self._engine.encode(network_image(frame.rgb, size))
        state = self._state
        if state.key is None:
            camera, state = self._begun(frame, features, size, 0)
        else:
            camera, state = self._followed(frame, features, size, dense)
        self._camera, self._state = camera, state
        assert state.key is not None
        key, seen = state.seen[state.key], state.seen[frame.index]
        return frame_prediction(seen, key, camera.grid, camera.source)

    def densify(self, prediction: FramePrediction) -> FramePrediction:
        """As it is: the network gives pose and depth together."""
        return prediction

    def predict(self, window: Window) -> WindowPrediction:
        """Pointmaps of a window; mode exact recomputes them, and a worn keyframe is replaced.

        Raises:
            PredictorError: a frame of the window was never tracked.
        """
        missing = [index for index in window.indices if index not in self._state.seen]
        if missing or self._camera is None:
            raise PredictorError(f"frames {missing} were not tracked; give each to track() first")
        state = self._state
        if self._config.mode == "exact":
            state = self._recomputed(state)
        elif self._is_key_worn(state):
            state = self._rekeyed(state, _newest_posed(state))
        self._state = state
        frames = [state.seen[index] for index in window.indices]
        key = state.seen[_window_key(state, window.indices)]
        return window_prediction(window, frames, key, self._camera.grid, self._camera.source)

    # ------------------------------------------------------------------ one frame
    def _checked_size(self, frame: Frame) -> Size:
        """Size of the network's image of a frame that fits the stream."""
        camera = self._camera
        if camera is not None and frame.size != camera.input_size:
            (h, w), (height, width) = frame.size, camera.input_size
            raise PredictorError(
                f"frame {frame.index} is {w} x {h}, the stream {width} x {height}; reset before "
                "feeding another camera"
            )
        if camera is not None and frame.intrinsics not in (None, camera.given):
            raise PredictorError(
                f"frame {frame.index} has other intrinsics than the stream; reset before feeding "
                "another camera"
            )
        return network_size(frame.size, self._config.long_side)

    def _begun(
        self, frame: Frame, features: Features, size: Size, gauge: int
    ) -> tuple[_Camera, _State]:
        """A gauge that starts with this frame, its own keyframe."""
        raw, ring = self._model.alone(frame.index, features)
        camera = self._camera or _camera(frame, raw, size)
        seen = _unread(frame, gauge, camera).read_own(raw, torch.eye(4, dtype=torch.float64))
        known = self._bounded({**self._state.seen, frame.index: seen}, frame.index)
        return camera, _State(gauge, frame.index, 0, known, {frame.index: features}, ring)

    def _followed(
        self, frame: Frame, features: Features, size: Size, dense: bool
    ) -> tuple[_Camera, _State]:
        """The next frame of the present gauge, or the first of a new one if this is lost."""
        state, camera = self._state, self._camera
        assert camera is not None and state.key is not None
        held = Held(state.key, state.features, state.ring)
        raws, ring = self._model.arrived(frame.index, features, held, dense)
        readings = [read_edge(raw, camera.grid, state.seen[raw.target].depth) for raw in raws]
        unread = replace(_unread(frame, state.gauge, camera), is_dense=dense)
        seen = unread.read(readings, state.seen)
        num_lost = state.num_lost + 1 if seen.T_gauge_cam is None else 0
        if num_lost >= _LOST_AFTER:
            return self._begun(frame, features, size, state.gauge + 1)
        known = self._bounded({**state.seen, frame.index: seen}, state.key)
        kept = self._bounded({**state.features, frame.index: features}, state.key)
        return camera, replace(state, num_lost=num_lost, seen=known, features=kept, ring=ring)

    def _bounded(self, held: Mapping[int, Kept], key: int) -> dict[int, Kept]:
        """The latest entries and the keyframe's."""
        latest = sorted(held)[-self._kept :]
        return {index: held[index] for index in sorted({*latest, key})}

    # ------------------------------------------------------------------ a window
    def _is_key_worn(self, state: _State) -> bool:
        assert state.key is not None
        newest = state.seen[max(state.seen)]
        is_old = newest.index - state.key >= self._config.keyframe_interval
        return is_old or newest.overlap < self._config.keyframe_overlap

    def _rekeyed(self, state: _State, key: int) -> _State:
        """With another keyframe; the ring is decoded anew, what is known of frames stays."""
        if key == state.key:
            return state
        ring = state.ring
        if ring is not None:
            assert self._temporal is not None
            ring = self._temporal.rekeyed(state.features, key, ring.indices)
        return replace(
            state,
            key=key,
            ring=ring,
            seen=self._bounded(state.seen, key),
            features=self._bounded(state.features, key),
        )

    def _recomputed(self, state: _State) -> _State:
        """With the newest frame as keyframe, and all frames of the ring read from there anew."""
        if self._temporal is None:
            return self._rekeyed(state, _newest_posed(state))
        state = self._rekeyed(state, _newest_posed(state))
        ring = state.ring
        assert ring is not None and self._camera is not None
        raws = {raw.source: raw for raw in self._temporal.edges(ring, ring.indices, True)}
        seen = reread(state.seen, raws, ring.key, self._camera.grid)
        return replace(state, seen=seen)


def check_fits(config: Config, length: int | None) -> None:
    """Require a network of the kind asked for, a window of its length, and whole patches.

    Raises:
        ConfigError: they differ.
    """
    kind = "pairwise" if length is None else "temporal"
    if config.pomato.kind not in ("auto", kind):
        raise ConfigError(
            f"pomato.kind={config.pomato.kind} but the model is {kind}; give the file of a "
            f"{config.pomato.kind} model, or set pomato.kind={kind}"
        )
    if length is not None and length != config.window.size:
        raise ConfigError(
            f"window.size={config.window.size} but the model is for windows of {length} frames; "
            f"set window.size={length}"
        )
    if config.pomato.long_side % PATCH:
        raise ConfigError(
            f"pomato.long_side={config.pomato.long_side} is no multiple of {PATCH}; set it to "
            f"{PATCH * max(2, round(config.pomato.long_side / PATCH))}"
        )


def _camera(frame: Frame, raw: RawEdge, size: Size) -> _Camera:
    """The camera of a stream by its first frame: given, or estimated from its own map."""
    if frame.intrinsics is not None:
        grid = resize_intrinsics(frame.intrinsics, size)
        return _Camera(frame.size, frame.intrinsics, grid, IntrinsicsSource.GIVEN)
    focal = weiszfeld_focal(raw.now.points, trusted_pixels(raw.now), frame.size)
    focal = _USUAL_FOCAL * max(frame.size) if focal is None else focal
    grid = camera_of_focal(focal, frame.size, size)
    return _Camera(frame.size, None, grid, IntrinsicsSource.ESTIMATED)


def _unread(frame: Frame, gauge: int, camera: _Camera) -> Seen:
    unknown = torch.full(camera.grid.size, torch.nan)
    return Seen(
        index=frame.index,
        stamp_ns=frame.stamp_ns,
        gauge=gauge,
        T_gauge_cam=None,
        depth=unknown,
        confidence=torch.zeros_like(unknown),
        residual_px=torch.nan,
        num_support=0,
        overlap=0.0,
    )


def _posed(state: _State, indices: Iterable[int]) -> list[int]:
    """Those of some frames that have a pose in the present gauge."""
    frames = (state.seen[index] for index in indices)
    return [s.index for s in frames if s.gauge == state.gauge and s.T_gauge_cam is not None]


def _newest_posed(state: _State) -> int:
    return max(_posed(state, state.seen))


def _window_key(state: _State, indices: tuple[int, ...]) -> int:
    """The keyframe if the window holds it, else its newest frame with a pose."""
    if state.key in indices:
        return state.key
    return max(_posed(state, indices), default=indices[-1])
