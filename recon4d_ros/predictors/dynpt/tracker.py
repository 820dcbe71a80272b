"""Point tracks by DynPT over sliding windows.

Source: C4D, supplementary material: queries on cells of 20 x 20 px, windows of 16 frames that move
on by 4. The maps of frames that an earlier window held are kept, and each window starts from the
last one's result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon4d_ros.config import TrackerConfig
from recon4d_ros.datatypes import Frame, Tracks, Window
from recon4d_ros.errors import PredictorError
from recon4d_ros.geometry.image_grid import Size, resize_uv
from recon4d_ros.networks.dynpt import FeatureMaps, TrackState
from recon4d_ros.networks.dynpt.refinement import Refinement
from recon4d_ros.networks.images import network_images
from recon4d_ros.predictors.classical.images import grey_image
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.tracks import Index, query_points
from recon4d_ros.predictors.dynpt.flow_start import FlowStart
from recon4d_ros.predictors.dynpt.table import QueryTable
from recon4d_ros.predictors.mobility import UNKNOWN
from recon4d_ros.predictors.pomato.image_size import network_image, network_size

# Visibility times confidence above which a point counts as seen (CoTracker3).
_SEEN = 0.6
_MAX_MISSING = 12  # frames without a sight after which a track ends


class DynPTTracker:
    """A `PointTracker`; its state is bounded by the window and by `tracker.max_points`.

    What a window says of a frame replaces what earlier windows said of it: the newest saw more.
    """

    name = "dynpt"

    def __init__(self, network: Refinement, settings: TrackerConfig) -> None:
        """Use a network that lies on its device already."""
        self._network = network
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if newly made."""
        self._table = QueryTable(self._settings.max_points)
        self._maps: dict[int, FeatureMaps] = {}
        self._flow = FlowStart() if self._network.config.needs_flow else None
        self._state: TrackState | None = None
        self._tracks: Tracks | None = None
        self._indices: tuple[int, ...] = ()
        self._size: Size | None = None

    @torch.no_grad()
    def track(self, window: Window) -> Tracks:
        """Tracks over the frames of a window, px of the frames' own size.

        Points are sought in the first frame of all and in the newest frame of each window; those
        of the newest frame are known there alone until the next window. A window may have fewer
        frames than the network was trained on. The same window again gives the same tracks.

        Raises:
            PredictorError: the frames differ in size or came before; the state is unchanged.
        """
        self._check(window)
        if self._tracks is None or window.indices != self._indices:
            self._tracks = self._tracked(window)
        return self._tracks

    def _check(self, window: Window) -> None:
        sizes = {frame.size for frame in window.frames}
        sizes |= {self._size} if self._size else set()
        if len(sizes) != 1:
            raise PredictorError(
                f"frames {window.indices[0]} to {window.indices[-1]} have sizes {sorted(sizes)}; "
                "reset the tracker when the camera changes size"
            )
        newest = self._indices[-1] if self._indices else -1
        if window.indices[-1] < newest:
            raise PredictorError(
                f"a window ending at frame {window.indices[-1]} came after frame {newest}; "
                "give windows in order, or reset"
            )

    # ------------------------------------------------------------------ one window
    def _tracked(self, window: Window) -> Tracks:
        self._size = window.frames[0].size
        self._encode(window)
        if not self._indices:
            self._query(window.frames[0], np.zeros((0, 2)))
        old = self._table.used
        state = self._refined(window)
        self._indices, self._state = window.indices, state
        seen = _seen_probability(state)
        self._note_sights(seen)
        newest = window.indices[-1]
        self._table.drop_unseen(newest, _MAX_MISSING)
        live = old & self._table.used & (seen[-1] > _SEEN)
        at = resize_uv(state.uv[0, -1].cpu(), self._network_size, self._size)
        new = self._query(window.frames[-1], at.double().numpy()[live])
        self._state = self._with_new(state, new)
        return self._result(seen, new)

    def _encode(self, window: Window) -> None:
        """Keep the maps of the window's frames and of no others."""
        missing = [frame for frame in window.frames if frame.index not in self._maps]
        images = {f.index: network_image(f.rgb, self._network_size) for f in missing}
        if self._flow is not None:
            self._flow.show(images, window.indices)
        if images:
            rgb = torch.stack(list(images.values())).to(self._network.device)
            maps = self._network.encode(network_images(rgb)[None])
            for row, frame in enumerate(missing):
                self._maps[frame.index] = maps.frames(slice(row, row + 1))
        self._maps = {index: self._maps[index] for index in window.indices}

    def _refined(self, window: Window) -> TrackState:
        if self._table.support is None:
            # No point was ever found: there is nothing to ask the network.
            standing = torch.zeros(1, self._settings.max_points, 2, device=self._network.device)
            return TrackState.standing(standing, len(window.frames))
        queries = self._table.queries(window.indices).to(self._network.device)
        states = self._network.refine(
            FeatureMaps.joined([self._maps[index] for index in window.indices]),
            self._table.support,
            queries,
            iterations=self._settings.iterations or None,
            initial=self._initial(window, queries),
            valid=torch.from_numpy(self._table.used)[None].to(self._network.device),
        )
        return states[-1]

    def _initial(self, window: Window, queries: Tensor) -> TrackState:
        """The last window's result; in the new frames its newest one's, or where flow leads."""
        newest = self._indices[-1] if self._indices else window.indices[0]
        held = TrackState.standing(queries[..., 1:], len(window.frames))
        if self._state is not None:
            known = np.searchsorted(self._indices, window.indices)
            held = self._state.frames(torch.from_numpy(known.clip(max=len(self._indices) - 1)))
        if self._flow is None:
            return held
        seen = torch.from_numpy(_seen_probability(held) > _SEEN).to(held.uv.device)
        is_new = torch.from_numpy(self._table.frame == newest).to(held.uv.device)
        anchor = max(0, int(np.searchsorted(window.indices, newest, side="right")) - 1)
        return self._flow.tracks(held, seen, anchor, is_new)

    def _note_sights(self, seen: Array) -> None:
        frames = np.asarray(self._indices)[:, None]
        newest = np.where(seen > _SEEN, frames, -1).max(axis=0)
        self._table.last_seen = np.maximum(self._table.last_seen, newest)

    def _query(self, frame: Frame, occupied: Array) -> Index:
        """Rows of new points of a frame, in the cells that hold none of (M, 2) px."""
        height, width = frame.size
        inside = ((occupied >= 0) & (occupied <= [width - 1, height - 1])).all(axis=1)
        cell_px = self._settings.cell_px
        found = query_points(grey_image(frame), occupied[inside], cell_px, seed=frame.index)
        uv = resize_uv(torch.from_numpy(found), frame.size, self._network_size)
        rows = self._table.add(frame.index, uv.numpy())
        if len(rows):
            queries = torch.from_numpy(self._table.uv[rows]).float()
            queries = torch.cat([torch.zeros(len(rows), 1), queries], dim=1)[None]
            maps = self._maps[frame.index]
            support = self._network.support(maps, queries.to(self._network.device))
            self._table.remember(rows, support)
        return rows

    def _with_new(self, state: TrackState, rows: Index) -> TrackState:
        """With new tracks that stand still at their queries, nothing known about them."""
        uv = torch.from_numpy(self._table.uv).float()[None].to(state.uv.device)
        standing = TrackState.standing(uv, state.uv.shape[1])
        is_new = torch.zeros(len(self._table.ids), dtype=torch.bool, device=state.uv.device)
        is_new[torch.from_numpy(rows)] = True
        return state.replaced(is_new, standing)

    @property
    def _network_size(self) -> Size:
        if self._size is None:
            raise PredictorError("no frame was given yet; call track first")
        return network_size(self._size, self._settings.long_side)

    # ------------------------------------------------------------------ what goes out
    def _result(self, seen: Array, new: Index) -> Tracks:
        state = self._state
        if state is None or self._size is None:
            raise PredictorError("no window was tracked yet; call track first")
        uv = resize_uv(state.uv[0].cpu(), self._network_size, self._size)
        visibility = torch.from_numpy(seen)
        moving = torch.sigmoid(state.clip_mobility())[0].cpu()
        columns = torch.from_numpy(new)
        uv[:-1, columns] = torch.nan
        visibility[:-1, columns], visibility[-1, columns] = 0.0, 1.0
        moving[columns] = UNKNOWN
        rows = np.flatnonzero(self._table.used)
        rows = rows[np.argsort(self._table.ids[rows])]
        return Tracks(
            ids=torch.from_numpy(self._table.ids[rows]),
            uv=uv[:, rows],
            visibility=visibility[:, rows],
            mobility=moving[rows].expand(len(uv), -1).clone(),
        )


def _seen_probability(state: TrackState) -> Array:
    """(T, N) float32: that the point is seen, and where the track says."""
    visible, confident = (
        torch.sigmoid(logit[0]) for logit in (state.visibility_logit, state.confidence_logit)
    )
    return np.asarray((visible * confident).cpu().numpy())
