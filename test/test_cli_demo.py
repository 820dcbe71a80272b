"""The demo with real ROS 2 processes around a node that knows the truth, and its parts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rosbags.typesys import Stores, get_typestore

from recon4d_ros.cli import processes
from recon4d_ros.cli.demo import DemoOptions, run_demo, table, write_rendered
from recon4d_ros.cli.processes import ProcessGroup
from recon4d_ros.cli.recorded_run import (
    Received,
    RecordedRun,
    _point_cloud,
    _stamped_plane,
    measure_latency,
)
from recon4d_ros.errors import OutputError, ProcessError
from recon4d_ros.storage.ply import read_ply
from recon4d_ros.storage.trajectory import read_trajectory
from recon4d_ros.synthetic import scenes

# Small tensors: threads cost more than they give.
torch.set_num_threads(1)

TYPES = get_typestore(Stores.ROS2_JAZZY)
TRUTH_NODE = (sys.executable, str(Path(__file__).with_name("demo_truth_node.py")))
NUM_FRAMES = 40


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "room"
    write_rendered(path, scenes.demo(NUM_FRAMES, width=160))
    return path


def children_in(folder: Path) -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if str(folder) in line]


@pytest.mark.ros
def test_a_node_that_knows_the_truth_scores_perfectly(sequence: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = run_demo(DemoOptions(out, sequence, node=TRUTH_NODE))
    assert figures.trajectory is not None and figures.trajectory.ate.rmse < 1e-4
    assert figures.depth is not None and figures.depth.abs_rel < 1e-3
    assert figures.masks is not None and figures.masks.iou > 0.999
    latency = figures.latency
    assert latency.num_images == NUM_FRAMES and latency.num_posed >= NUM_FRAMES // 5
    assert 20.0 < latency.input_hz < 40.0 and 0.0 < latency.p50_s <= latency.p95_s < 1.0
    assert len(read_ply(out / "map.ply").points) == figures.num_map_points > 1000
    assert len(read_trajectory(out / "trajectory.tum").stamps_ns) == latency.num_posed
    assert (out / "summary.png").stat().st_size > 50_000 and (out / "report.json").is_file()
    assert {path.stem for path in (out / "logs").glob("[a-z]*r.log")} == {"player", "recorder"}
    assert len(table(figures)) == 6
    assert children_in(out) == []
    with pytest.raises(OutputError, match="not empty"):
        run_demo(DemoOptions(out, sequence, node=TRUTH_NODE))


@pytest.mark.ros
def test_a_node_that_fails_is_shown_and_nothing_is_left_running(
    sequence: Path, tmp_path: Path
) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('no camera today')")
    with pytest.raises(ProcessError, match=r"node ended with code 1.*no camera today"):
        run_demo(DemoOptions(tmp_path, sequence, node=broken))
    assert children_in(tmp_path) == []


@pytest.mark.ros
def test_recorder_says_which_topic_has_no_publisher(tmp_path: Path) -> None:
    command = ["recon4d_ros.ros.recorder", str(tmp_path / "bag"), "/nobody", "--wait", "0.2"]
    environment = dict(os.environ) | {"ROS_DOMAIN_ID": str(1 + os.getpid() % 100)}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "/nobody had no publisher" in done.stderr
    assert not (tmp_path / "bag").exists()


@pytest.mark.parametrize(("ignored", "code"), [("2", -signal.SIGTERM), ("2, 15", -signal.SIGKILL)])
def test_a_process_that_ignores_signals_is_told_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str, code: int
) -> None:
    monkeypatch.setattr(processes, "_STOPPED_BY", ((signal.SIGINT, 0.3), (signal.SIGTERM, 0.3)))
    script = f"import signal, time\nfor n in [{ignored}]: signal.signal(n, signal.SIG_IGN)\n"
    script += "print('on', flush=True)\ntime.sleep(60)"
    with ProcessGroup(tmp_path, os.environ) as group:
        stubborn = group.start("stubborn", [sys.executable, "-c", script])
        group.wait_until(lambda: "on" in stubborn.log.read_text(), "start", 20.0, stubborn)
        with pytest.raises(ProcessError, match=f"code {code} on SIGINT"):
            group.stop(stubborn)
        assert not stubborn.is_alive


def test_leaving_the_block_stops_everything_after_an_error(tmp_path: Path) -> None:
    class WorkError(Exception):
        pass

    with pytest.raises(WorkError), ProcessGroup(tmp_path, os.environ) as group:
        sleeper = group.start("sleeper", ["sleep", "60"])
        raise WorkError
    assert sleeper.popen.returncode == -signal.SIGINT


def test_waiting_ends_when_time_is_over_or_another_dies(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, os.environ) as group:
        sleeper = group.start("sleeper", ["sleep", "60"])
        with pytest.raises(ProcessError, match="sleeper did not wake within 0 s"):
            group.wait_until(lambda: False, "wake", 0.1, sleeper, alive=(sleeper,))
        short = group.start("short", ["sh", "-c", "echo over; exit 3"])
        with pytest.raises(ProcessError, match=r"short ended with code 3.*over"):
            group.wait_until(lambda: False, "wake", 20.0, sleeper, alive=(sleeper, short))
        with pytest.raises(ProcessError, match="cannot start"):
            group.start("nothing", ["/no/such/program"])


def test_latency_is_between_arrivals_of_the_same_stamp() -> None:
    images = {stamp: 10 * stamp for stamp in (100_000_000, 200_000_000, 300_000_000)}
    poses = {
        100_000_000: Received(1_020_000_000, None),
        300_000_000: Received(3_060_000_000, None),
        999: Received(5, None),
    }
    latency = measure_latency(images, poses)
    assert (latency.num_images, latency.num_posed) == (3, 2)
    assert latency.p50_s == pytest.approx(0.04) and latency.p95_s == pytest.approx(0.058)
    assert latency.input_hz == pytest.approx(1.0) and latency.posed_hz == pytest.approx(1 / 2.04)
    nothing = measure_latency({}, {})
    assert np.isnan(nothing.p50_s) and nothing.posed_hz == 0.0


def header(stamp_ns: int):
    stamp = TYPES.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    return TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def test_padded_rows_of_images_are_cut_off() -> None:
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    rows = np.concatenate([values.view(np.uint8), np.full((2, 4), 7, np.uint8)], axis=1)
    message = TYPES.types["sensor_msgs/msg/Image"](
        header=header(5_000_000_007),
        height=2,
        width=3,
        encoding="32FC1",
        is_bigendian=0,
        step=16,
        data=rows.reshape(-1),
    )
    stamp, plane = _stamped_plane(message, np.dtype("<f4"))
    assert stamp == 5_000_000_007
    np.testing.assert_array_equal(plane, values)


@pytest.mark.ros
def test_clouds_are_read_as_the_node_writes_them() -> None:
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from recon4d_ros.datatypes import PointCloud
    from recon4d_ros.ros.conversions import map_cloud

    cloud = PointCloud(
        torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.5, 6.0]]),
        torch.tensor([[255, 128, 1], [0, 2, 254]], dtype=torch.uint8),
        torch.tensor([0.5, 7.0]),
        torch.tensor([3, 90], dtype=torch.int32),
    )
    content = serialize_message(map_cloud(cloud, Header()))
    read = _point_cloud(TYPES.deserialize_cdr(content, "sensor_msgs/msg/PointCloud2"))
    for name in ("points", "rgb", "confidence", "num_observations"):
        assert torch.equal(getattr(read, name), getattr(cloud, name))


def test_a_recording_without_the_topic_is_empty(tmp_path: Path) -> None:
    from recon4d_ros.storage.bag_writer import open_bag

    with open_bag(tmp_path / "bag", None) as bag:
        bag.write(10**9, torch.zeros((4, 6, 3), dtype=torch.uint8))
    run = RecordedRun(tmp_path / "bag")
    assert run.poses() == {} and len(run.map().points) == 0
    assert list(run.arrivals_ns("/camera/image_raw")) == [10**9]
