"""Parameters of the neural networks."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting

_RUNS_IT = "what runs the network: PyTorch, ONNX Runtime, or ONNX Runtime with TensorRT"


@dataclass(frozen=True)
class PomatoConfig:
    """The POMATO predictor; the weights are the user's own download."""

    model: str = setting(
        "", "checkpoint (.pth, .safetensors), or for other runtimes the folder of an export"
    )
    kind: str = setting(
        "auto",
        "what the model must be; auto takes either, a temporal one needs window.size frames",
        choices=("auto", "pairwise", "temporal"),
    )
    runtime: str = setting("torch", _RUNS_IT, choices=("torch", "onnx", "tensorrt"))
    device: str = setting(
        "auto", "auto (CUDA where there is one), cpu, cuda, or cuda:N; never changed silently"
    )
    precision: str = setting(
        "fp32",
        "type of the arithmetic of runtime torch; fp16 needs CUDA, an export has its own",
        choices=("fp32", "bf16", "fp16"),
    )
    long_side: int = setting(
        512,
        "long side of the images shown to the network, a multiple of 16; the grid of its results",
        unit="px",
        minimum=32,
        maximum=2048,
    )
    mode: str = setting(
        "incremental",
        "temporal model: incremental decodes each frame once, against a held keyframe; exact also "
        "recomputes every window against its newest frame",
        choices=("incremental", "exact"),
    )
    keyframe_overlap: float = setting(
        0.7,
        "share of the newest frame that the keyframe sees, below which a new one is taken",
        minimum=0.0,
        maximum=1.0,
    )
    keyframe_interval: int = setting(
        24, "frames after which a new keyframe is taken", unit="frames", minimum=1, maximum=150
    )
    batch: int = setting(
        4, "pairs or frames that one pass of the network takes at most", minimum=1, maximum=64
    )
    memory_mib: int = setting(
        8192,
        "bound on weights, cached features and working memory; smaller batches come first, then "
        "an error",
        unit="MiB",
        minimum=64,
        maximum=1_000_000,
    )
    compile: bool = setting(False, "torch.compile; the first frames then take minutes")
    cuda_graphs: bool = setting(
        False,
        "record the network's calls as CUDA graphs and replay them; each takes a moment the first "
        "time, and from then on the GPU waits no longer for Python",
    )
    channels_last: bool = setting(True, "memory order of the heads' convolutions")


@dataclass(frozen=True)
class TrackerConfig:
    """Points tracked over windows, for masks and smooth trajectories."""

    name: str = setting(
        "auto",
        "auto: the predictor's own tracks, and klt where it has none (run --offline); klt: "
        "Lucas-Kanade; dynpt: a network",
        choices=("auto", "klt", "dynpt"),
    )
    model: str = setting(
        "",
        "dynpt: checkpoint (.safetensors), or for other runtimes the folder of an export; empty: "
        "the weights that come with this package",
    )
    runtime: str = setting("torch", _RUNS_IT, choices=("torch", "onnx", "tensorrt"))
    device: str = setting(
        "auto", "auto (CUDA where there is one), cpu, cuda, or cuda:N; never changed silently"
    )
    long_side: int = setting(
        256,
        "long side of the images shown to the network, a multiple of 16",
        unit="px",
        minimum=32,
        maximum=2048,
    )
    iterations: int = setting(
        0,
        "refinements of each window by the network; 0 makes as many as it was trained with",
        minimum=0,
        maximum=12,
    )
    max_points: int = setting(1024, "bound on tracks", minimum=16, maximum=10_000)
    cell_px: int = setting(
        20, "edge of the cells that each get new points", unit="px", minimum=4, maximum=200
    )
