"""Small rendered streams, shared by the tests that need images."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from recon4d_ros.datatypes import Frame, Window
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import RenderedFrame, render
from recon4d_ros.synthetic.scene import Scene


def rendered(name: str, index: int, width: int = 320, length: int = 60) -> RenderedFrame:
    return picture(_named(name, length, width), index)


_named = cache(scenes.named)


@cache
def picture(scene: Scene, index: int) -> RenderedFrame:
    return render(scene, index)


def frames(name: str, count: int, width: int = 320, step: int = 1) -> tuple[Frame, ...]:
    """The first frames of a scene; every `step`-th one, numbered anew, for a faster camera."""
    return tuple(
        replace(rendered(name, index * step, width).frame, index=index) for index in range(count)
    )


def windows(stream: tuple[Frame, ...], size: int = 12, stride: int = 4) -> list[Window]:
    ends = range(stride, len(stream) + 1, stride)
    return [Window(stream[max(0, end - size) : end], end - 3) for end in ends]
