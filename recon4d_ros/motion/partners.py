"""Which flows of a frame are asked."""

from __future__ import annotations

from collections.abc import Iterable

from recon4d_ros.datatypes import FlowField

# Partners farther than this see little of what moves; the farthest of them is not heard alone.
FAR_FRAMES = 9


def later_flows(index: int, flows: Iterable[FlowField]) -> list[FlowField]:
    """Those from a frame to later ones."""
    return [flow for flow in flows if flow.source == index and flow.target > index]


def past_flows(index: int, flows: Iterable[FlowField]) -> list[FlowField]:
    """Those from a frame to earlier ones."""
    return [flow for flow in flows if flow.source == index and flow.target < index]


def nearest_and_farthest(flows: Iterable[FlowField]) -> list[FlowField]:
    """Fast motion shows in the nearest partner, slow motion in the farthest; more add nothing.

    Unless the farthest lies too far away to see much of the frame, where few frames are dense.
    """
    ordered = sorted(flows, key=lambda flow: abs(flow.target - flow.source))
    if len(ordered) < 3:
        return ordered
    reach = abs(ordered[-1].target - ordered[-1].source)
    return [ordered[0], *ordered[-2 if reach > FAR_FRAMES else -1 :]]
