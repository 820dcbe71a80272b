"""A network's calls as CUDA graphs: recorded once for each shape, replayed ever after.

One more frame of a stream is some two thousand small kernels, which a GPU finishes faster than
Python can launch them. A graph launches all of a call at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon4d_ros.errors import PredictorError
from recon4d_ros.networks.pomato import Features, HookTokens, Pointmap
from recon4d_ros.networks.pomato.rope import Grid
from recon4d_ros.networks.pomato.sizes import PATCH
from recon4d_ros.predictors.pomato.network import PointmapNetwork

# Calls before the recording: they choose algorithms, compile and fill caches.
_WARM_UPS = 3
# A stream needs fewer: a head has one for each place in the window, and one for all of them.
_MOST_RECORDINGS = 64

_Tensors = tuple[Tensor, ...]
_Work = Callable[[_Tensors], _Tensors]


@dataclass(frozen=True, eq=False)
class _Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: _Tensors
    outputs: _Tensors


class RecordedNetwork:
    """A network on a CUDA device whose calls are replayed; it says what the network says.

    All recordings share one pool of memory, and those of equal shapes their inputs. Results are
    copies, which later calls leave alone. The recording not used for longest gives way when
    there are too many.
    """

    def __init__(self, network: PointmapNetwork) -> None:
        """Wrap a network whose calls neither wait for the device nor copy from the host."""
        self._network = network
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._recordings: OrderedDict[tuple[Hashable, Hashable], _Recording] = OrderedDict()
        self._inputs: dict[Hashable, _Tensors] = {}

    @property
    def temporal_length(self) -> int | None:
        """See `PointmapNetwork`."""
        return self._network.temporal_length

    def encode(self, images: Tensor) -> Features:
        """See `PointmapNetwork`."""
        height, width = images.shape[-2:]

        def work(inputs: _Tensors) -> _Tensors:
            return (self._network.encode(inputs[0]).tokens,)

        (tokens,) = self._replayed(("encode",), work, (images,))
        return Features(tokens, (height // PATCH, width // PATCH))

    def decode(self, features1: Features, features2: Features) -> tuple[HookTokens, HookTokens]:
        """See `PointmapNetwork`."""
        grid1, grid2 = features1.grid, features2.grid

        def work(inputs: _Tensors) -> _Tensors:
            first, second = Features(inputs[0], grid1), Features(inputs[1], grid2)
            tokens1, tokens2 = self._network.decode(first, second)
            return (*tokens1.levels, *tokens2.levels)

        inputs = features1.tokens, features2.tokens
        levels = self._replayed(("decode", grid1, grid2), work, inputs)
        return _hooked(levels[:4], grid1), _hooked(levels[4:], grid2)

    def head(
        self,
        number: int,
        tokens: HookTokens,
        frames: Sequence[int] | None = None,
        chunk: int = 4,
    ) -> Pointmap:
        """See `PointmapNetwork`."""
        grid = tokens.grid
        places = None if frames is None else tuple(frames)

        def work(inputs: _Tensors) -> _Tensors:
            return tuple(self._network.head(number, _hooked(inputs, grid), places, chunk))

        call = "head", number, grid, places, chunk
        points, conf = self._replayed(call, work, tokens.levels)
        return Pointmap(points, conf)

    def _replayed(self, call: Hashable, work: _Work, inputs: _Tensors) -> _Tensors:
        """What the work makes of the inputs; `call` names everything else that it depends on."""
        kinds = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        recording = self._recordings.get((call, kinds))
        if recording is None:
            fixed = self._inputs.setdefault(kinds, tuple(map(torch.clone, inputs)))
            try:
                recording = self._recorded(str(call), work, fixed)
            except torch.cuda.OutOfMemoryError:
                # What is recorded holds memory that a smaller batch may need.
                self._recordings.clear()
                self._inputs.clear()
                raise
            self._recordings[call, kinds] = recording
            if len(self._recordings) > _MOST_RECORDINGS:
                self._recordings.popitem(last=False)
                self._inputs = {key[1]: one.inputs for key, one in self._recordings.items()}
        self._recordings.move_to_end((call, kinds))
        for held, new in zip(recording.inputs, inputs, strict=True):
            held.copy_(new)
        recording.graph.replay()
        return tuple(map(torch.clone, recording.outputs))

    def _recorded(self, name: str, work: _Work, inputs: _Tensors) -> _Recording:
        """Record on a stream of our own, as CUDA demands.

        Raises:
            PredictorError: the work cannot be recorded.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        recorder = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with recorder:
                outputs = work(inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PredictorError(
                f"CUDA cannot record {name} as a graph ({error}); set pomato.cuda_graphs=false"
            ) from error
        return _Recording(graph, inputs, outputs)


def _hooked(levels: _Tensors, grid: Grid) -> HookTokens:
    first, second, third, fourth = levels
    return HookTokens((first, second, third, fourth), grid)
