"""`recon4d demo`: the node on a stream with known truth, as real ROS 2 processes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from recon4d_ros.cli.processes import Process, ProcessGroup, private_graph
from recon4d_ros.cli.recorded_run import (
    DEPTH,
    IMAGE_TOPIC,
    INFO_TOPIC,
    MAP,
    MASK,
    NODE,
    TF,
    RecordedRun,
    RunFigures,
    score,
)
from recon4d_ros.cli.summary import Summary, draw_summary
from recon4d_ros.errors import OutputError
from recon4d_ros.storage.bag_writer import write_bag
from recon4d_ros.storage.dataset import SequenceFolder
from recon4d_ros.storage.index import write_text
from recon4d_ros.storage.ply import write_ply
from recon4d_ros.storage.rectification import CameraModel
from recon4d_ros.storage.results import check_folder
from recon4d_ros.storage.sequence_writer import SequenceSample, write_sequence
from recon4d_ros.storage.trajectory import write_trajectory
from recon4d_ros.synthetic import scenes
from recon4d_ros.synthetic.renderer import render
from recon4d_ros.synthetic.scene import Scene

_DESCRIPTION = """\
Renders a room with moving things (or takes a sequence folder), plays it at the camera's rate as a
ROS 2 bag to the node, records what the node publishes and compares it with the truth.

DIR receives
  sequence/      the rendered images and their truth (not with --sequence)
  bag/           the same as a rosbag2, for `recon4d play`
  recording/     what went in and what the node published, as a rosbag2
  summary.png    input, depth, what moves, and the map from two views
  map.ply, trajectory.tum, report.json
  logs/          of the node, the player and the recorder
"""

_EPILOG = """examples:
  recon4d demo --out demo_out
  recon4d demo --out demo_walking --sequence walking/
"""

_SEQUENCE = "sequence"
_MADE = (_SEQUENCE, "bag", "recording", "logs", "summary.png", "map.ply")
_MADE_TOO = ("trajectory.tum", "report.json")
_START_S, _PLAY_SLACK_S = 60.0, 60.0
# The node publishes its map once a second, and needs a moment for the last images.
_LAST_MAP_S = 2.5

IMAGE_TYPE = "sensor_msgs/msg/Image"
# Not ~/path: it repeats every pose of ~/odometry in every message.
RECORDED = (
    TF,
    f"{NODE}/pose",
    f"{NODE}/odometry",
    f"{NODE}/points",
    f"{NODE}/dynamic_points",
    MASK,
    DEPTH,
    f"{NODE}/depth/camera_info",
    MAP,
    "/diagnostics",
)


@dataclass(frozen=True)
class DemoOptions:
    """What to run.

    Attributes:
        out: folder of the results.
        sequence: what to play; None renders the scene.
        num_frames: of the rendered scene.
        rate: playing speed; below 1 for a machine that is slow or busy.
        overwrite: replace the results of an earlier demo.
        node: command of the node, without its ROS arguments.
    """

    out: Path
    sequence: Path | None = None
    num_frames: int = 120
    rate: float = 1.0
    overwrite: bool = False
    node: Sequence[str] = (sys.executable, "-m", "recon4d_ros.ros.node")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="show the node at work and measure it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="result folder")
    parser.add_argument(
        "--sequence", metavar="FOLDER", type=Path, help="play this instead of a rendered scene"
    )
    parser.add_argument(
        "--frames", metavar="N", type=_count, default=120, help="length of the rendered scene"
    )
    parser.add_argument(
        "--rate",
        metavar="R",
        type=_positive,
        default=1.0,
        help="playing speed; below 1 for a machine that is slow or busy (default 1)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results of an earlier demo"
    )
    parser.set_defaults(run=run)


def _positive(text: str) -> float:
    number = float(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 3:
        raise argparse.ArgumentTypeError(f"{number} is below 3, too few to align a trajectory")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table; 0."""
    options = DemoOptions(args.out, args.sequence, args.frames, args.rate, args.overwrite)
    figures = run_demo(options)
    print("\n".join(table(figures)))
    print(f"\nresults in {args.out}: summary.png, map.ply, recording/")
    return 0


def run_demo(options: DemoOptions) -> RunFigures:
    """Make the stream, run the processes, write the results.

    Raises:
        Recon4DError: a step failed; whatever was started has been stopped.
    """
    _prepare(options)
    sequence = _sequence(options)
    for _ in tqdm(
        write_bag(sequence, options.out / "bag"),
        "writing bag",
        total=sequence.num_images,
        unit="image",
        disable=None,
    ):
        pass
    _perform(options, sequence)
    recorded = RecordedRun(options.out / "recording")
    figures = score(recorded, sequence)
    _write_results(options.out, recorded, sequence, figures)
    return figures


def _prepare(options: DemoOptions) -> None:
    """Own the folder; only what a demo makes is ever removed."""
    check_folder(options.out, overwrite=options.overwrite)
    try:
        for name in (*_MADE, *_MADE_TOO):
            path = options.out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write into {options.out}: {error.strerror}; choose another --out"
        ) from error


def _sequence(options: DemoOptions) -> SequenceFolder:
    """The sequence to play, rendered first unless one was given."""
    if options.sequence is not None:
        return SequenceFolder(options.sequence)
    # Rays come in small batches, which threads slow down more than they help.
    torch.set_num_threads(1)
    return write_rendered(options.out / _SEQUENCE, scenes.demo(options.num_frames))


def write_rendered(path: Path, scene: Scene) -> SequenceFolder:
    """A sequence folder of a scene, with its truth.

    Raises:
        OutputError: as `write_sequence`.
    """
    return write_sequence(path, CameraModel(scene.intrinsics), _samples(scene))


def _samples(scene: Scene) -> Iterator[SequenceSample]:
    for index in tqdm(range(scene.num_frames), "rendering", unit="frame", disable=None):
        frame = render(scene, index)
        yield SequenceSample(
            frame.stamp_ns, frame.rgb, frame.depth, frame.dynamic_mask, frame.T_world_cam
        )


def _perform(options: DemoOptions, sequence: SequenceFolder) -> None:
    """Node, recorder and player, until everything is recorded."""
    stamps = [entry.stamp_ns for entry in sequence.entries]
    duration_s = (stamps[-1] - stamps[0]) * 1e-9 / options.rate
    recording = options.out / "recording"
    with private_graph(options.out / "logs") as group:
        node = group.start("node", [*options.node, *_node_arguments()])
        recorder = group.start("recorder", _recorder_command(recording))
        group.wait_until(
            recording.exists, "hear the node", _START_S, recorder, alive=(node, recorder)
        )
        player = group.start("player", _player_command(options))
        _show_playing(group, duration_s, player, (node, recorder))
        if player.popen.returncode != 0:
            raise player.failure(f"ended with code {player.popen.returncode}")
        deadline_s = time.monotonic() + _LAST_MAP_S
        group.wait_until(
            lambda: time.monotonic() > deadline_s, "rest", 60.0, node, alive=(node, recorder)
        )
        group.stop(recorder)
        group.stop(node)


def _show_playing(
    group: ProcessGroup, duration_s: float, player: Process, others: Sequence[Process]
) -> None:
    """Wait for the player behind a bar of time."""
    start_s = time.monotonic()
    with tqdm(total=round(duration_s, 1), desc="playing", unit="s", disable=None) as bar:

        def ended() -> bool:
            bar.update(round(min(time.monotonic() - start_s, bar.total) - bar.n, 1))
            return not player.is_alive

        timeout_s = duration_s + _PLAY_SLACK_S
        group.wait_until(ended, "finish", timeout_s, player, alive=others)


def _node_arguments() -> list[str]:
    remaps = {"image": IMAGE_TOPIC, "camera_info": INFO_TOPIC}
    rules = [part for old, new in remaps.items() for part in ("-r", f"{old}:={new}")]
    return ["--ros-args", *rules, "-p", "use_sim_time:=true"]


def _recorder_command(recording: Path) -> list[str]:
    topics = [f"{IMAGE_TOPIC}={IMAGE_TYPE}", *RECORDED]
    return [sys.executable, "-m", "recon4d_ros.ros.recorder", str(recording), *topics]


def _player_command(options: DemoOptions) -> list[str]:
    # The node and the recorder.
    waiting = ["--wait-for", IMAGE_TOPIC, "--subscribers", "2"]
    program = [sys.executable, "-m", "recon4d_ros.cli.main", "play", str(options.out / "bag")]
    return [*program, "--rate", str(options.rate), *waiting]


def _write_results(
    out: Path, recorded: RecordedRun, sequence: SequenceFolder, figures: RunFigures
) -> None:
    write_ply(out / "map.ply", recorded.map())
    write_trajectory(out / "trajectory.tum", recorded.trajectory())
    report = json.dumps(_without_nan(dataclasses.asdict(figures)), indent=1)
    write_text(out / "report.json", report + "\n")
    draw_summary(out / "summary.png", _summary(recorded, sequence, figures))


def _summary(recorded: RecordedRun, sequence: SequenceFolder, figures: RunFigures) -> Summary:
    """The frame of the run that shows most, and the map.

    Raises:
        OutputError: the node published no frame with depth and mask.
    """
    stamp = _most_telling(recorded)
    images = {image.stamp_ns: image for image in sequence.images()}
    depth = next(depth for each, depth in recorded.depths() if each == stamp)
    mask = next(mask for each, mask in recorded.masks() if each == stamp)
    return Summary(
        title=f"recon4d demo: {'rendered room' if sequence.name == _SEQUENCE else sequence.name}",
        subtitle=_headline(figures),
        rgb=images[stamp].load(),
        depth=torch.from_numpy(depth),
        mask=torch.from_numpy(mask),
        cloud=recorded.map(),
        T_map_cam=recorded.trajectory().T_world_cam,
        unit="map units",
    )


def _most_telling(recorded: RecordedRun) -> int:
    """Stamp of the frame with the most known depth and motion."""
    moving = {stamp: min(float(mask.mean()), 0.2) for stamp, mask in recorded.masks()}
    known = {stamp: float((depth == depth).mean()) for stamp, depth in recorded.depths()}
    both = moving.keys() & known.keys()
    if not both:
        raise OutputError(
            "the node published no depth with a mask, so there is nothing to draw; expected one "
            "per image; see logs/node.log"
        )
    return max(sorted(both), key=lambda stamp: known[stamp] + 2.0 * moving[stamp])


def table(figures: RunFigures) -> list[str]:
    """The figures as lines of text."""
    trajectory, depth, masks = figures.trajectory, figures.depth, figures.masks
    latency, rows = figures.latency, []
    if trajectory is not None:
        spread = f"of a camera that spreads over {trajectory.spread:.3f} m"
        rows.append(("trajectory", f"ATE {trajectory.ate.rmse:.4f} m, Sim(3), {spread}"))
    if depth is not None:
        pixels = "all pixels" if masks is None else "static pixels"
        known = f"{depth.valid_share:.0%} of them known"
        rows.append(("depth", f"AbsRel {depth.abs_rel:.4f} on {pixels}, {known}"))
    if masks is not None:
        shares = f"recall {masks.recall:.3f}, precision {masks.precision:.3f}"
        rows.append(("moving", f"IoU {masks.iou:.3f}, {shares}"))
    share = latency.num_posed / max(latency.num_images, 1)
    posed = f"{latency.num_posed} of {latency.num_images} images posed, {share:.0%}"
    rows.append(("rate", f"{latency.posed_hz:.1f} Hz of {latency.input_hz:.1f} Hz; {posed}"))
    times = f"p50 {1e3 * latency.p50_s:.0f} ms, p95 {1e3 * latency.p95_s:.0f} ms"
    rows.append(("latency", f"image to TF {times}"))
    rows.append(("map", f"{figures.num_map_points:,} points"))
    return [f"{name:12s}{text}" for name, text in rows]


def _headline(figures: RunFigures) -> str:
    """The figures in one short line."""
    parts = []
    if figures.trajectory is not None:
        parts.append(f"ATE {figures.trajectory.ate.rmse:.4f} m")
    if figures.depth is not None:
        parts.append(f"AbsRel {figures.depth.abs_rel:.3f}")
    if figures.masks is not None:
        parts.append(f"IoU {figures.masks.iou:.2f}")
    parts.append(f"{figures.latency.posed_hz:.0f} Hz")
    parts.append(f"{1e3 * figures.latency.p50_s:.0f} ms")
    return "   ".join(parts)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
