"""Where clips come from, and how the next batch is made while a step runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recon4d_ros.datatypes.clips import Clips


class ClipSource(Protocol):
    """Clips by number: equal numbers give equal clips, whatever the batch."""

    def clips(self, first: int, count: int) -> Clips:
        """Clips number `first` to `first + count - 1`."""


@dataclass(frozen=True)
class Sources:
    """The clips of a run.

    Attributes:
        early: shorter clips for the beginning.
        usual: for the rest.
        held_out: for validation, of another seed.
    """

    early: ClipSource
    usual: ClipSource
    held_out: ClipSource


@dataclass(frozen=True)
class Request:
    """A batch to be made: which clips of which source."""

    source: ClipSource
    first: int
    count: int

    def made(self) -> Clips:
        """The clips."""
        return self.source.clips(self.first, self.count)


class Inline:
    """Makes each batch when it is asked for; on a CPU a second thread would only be in the way."""

    def batch(self, wanted: Request, following: Callable[[], Request]) -> Clips:
        """The wanted clips."""
        return wanted.made()

    def close(self) -> None:
        """Nothing is left over."""


class Ahead:
    """Makes the following batch in a thread while a step runs, on a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clips")
        self._next: tuple[Request, Future[Clips]] | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # What the sources hold was made on the stream of this thread.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def batch(self, wanted: Request, following: Callable[[], Request]) -> Clips:
        """The wanted clips; the following ones are begun.

        Those begun before are thrown away where others are wanted now.
        """
        begun = self._next
        future = begun[1] if begun and begun[0] == wanted else self._begin(wanted)
        clips = future.result()
        request = following()
        self._next = request, self._begin(request)
        if self._stream is not None:
            _keep_for(torch.cuda.current_stream(self._stream.device), clips)
        return clips

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _begin(self, request: Request) -> Future[Clips]:
        return self._thread.submit(self._made, request)

    def _made(self, request: Request) -> Clips:
        if self._stream is None:
            return request.made()
        with torch.cuda.stream(self._stream):
            clips = request.made()
        # Only this thread waits; whoever takes the clips need not.
        self._stream.synchronize()
        return clips


def _keep_for(stream: torch.cuda.Stream, clips: Clips) -> None:
    """Keep the memory until this stream has read it, though another one has written it."""
    for item in dataclasses.fields(clips):
        value = getattr(clips, item.name)
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(stream)


def batches(device: torch.device) -> Inline | Ahead:
    """What makes batches on this device."""
    return Ahead(device) if device.type == "cuda" else Inline()
