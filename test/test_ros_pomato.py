"""The node with POMATO: real processes, small networks of random weights."""

import signal

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from pomato_stream import config, model_file
from ros_support import SIZE, new_domain, probe_in, python_process, session

from recon4d_ros.config import Config
from recon4d_ros.pipeline.factory import build_reconstructor

pytestmark = pytest.mark.ros

NODE = "-m", "recon4d_ros.ros.node", "--ros-args"


def overrides(**changes) -> list[str]:
    """What differs from the defaults, as ROS arguments."""
    chosen = config(input__mode="replay", input__reliability="reliable", **changes).flat()
    given = {name: value for name, value in chosen.items() if Config().get(name) != value}
    return [word for name, value in given.items() for word in ("-p", f"{name}:={value}")]


@pytest.mark.parametrize("kind", ["temporal", "pairwise"])
def test_the_node_streams_a_network_and_says_what_it_runs(kind, tmp_path):
    domain = new_domain()
    options = overrides(pomato__model=str(model_file(kind, tmp_path)))
    with probe_in(domain) as probe, python_process(domain, *NODE, *options) as process:
        probe.listen("dynamic_mask", "depth/image", "/diagnostics")
        probe.until(lambda: probe.image.get_subscription_count() > 0, "the node")
        probe.connected()
        for _ in range(6):
            mask = probe.send_and_wait("dynamic_mask")
            assert (mask.height, mask.width) == SIZE
        depth = probe.heard["depth/image"][-1]
        values = np.frombuffer(depth.data, np.float32)
        assert not (values <= 0).any()
        probe.until(lambda: probe.value("process", "precision") == "float32", "diagnostics")
        described = probe.diagnostics("process")[2]
        assert described["predictor"].startswith(f"pomato ({kind}")
        assert (described["device"], described["out_of_memory"]) == ("cpu", "0")
        assert probe.value("input", "dropped") == "0"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "pomato.model is empty"),
        ({"pomato__model": "nowhere.pth"}, "does not exist"),
        ({"pomato__model": "nowhere.pth", "pomato__device": "cuda:99"}, "pomato.device"),
    ],
)
def test_a_node_that_cannot_load_its_network_says_why_and_stays_unconfigured(changes, said):
    topics = ("/diagnostics",)
    with session(build_reconstructor, topics, predictor__name="pomato", **changes) as (probe, *_):
        probe.until(lambda: said in probe.diagnostics("process")[1], f"'{said}'")
        assert probe.diagnostics("process")[0] == DiagnosticStatus.ERROR
        assert probe.image.get_subscription_count() == 0
