"""Networks and images made by rule, and the arrays that POMATO must reproduce on them."""

from __future__ import annotations

import dataclasses
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pomato_weights import (
    position_table,
    relative_l2,
    rule_images,
    rule_net,
    rule_tensor,
)
from recon4d_ros.networks.pomato import PomatoNet, PomatoSizes, save_safetensors

__all__ = [
    "EXPORT_SIZE",
    "PAIR_FIELDS",
    "PARITY",
    "SHALLOW",
    "TINY",
    "WINDOW_FIELDS",
    "arrays",
    "position_table",
    "relative_l2",
    "require",
    "rule_images",
    "rule_net",
    "rule_tensor",
    "shallow_export",
    "shallow_temporal",
]

EXPORT_SIZE = (48, 80)
PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"

TINY = PomatoSizes(
    encoder_width=64,
    encoder_depth=3,
    encoder_heads=4,
    encoder_hidden=256,
    decoder_width=64,
    decoder_depth=10,
    decoder_heads=4,
    decoder_hidden=256,
    level_widths=(16, 24, 32, 48),
    feature_width=32,
    head_widths=(16, 16),
)

# Depth is what tracing for ONNX takes its time for.
SHALLOW = dataclasses.replace(TINY, encoder_depth=1, decoder_depth=2)

PAIR_FIELDS = {
    "points_1": "pts3d_1",
    "conf_1": "conf_1",
    "points_2_in_1": "pts3d_2_in_1",
    "conf_2": "conf_2",
    "matching_2_in_1": "matching_2_in_1",
    "conf_matching": "conf_matching",
}
WINDOW_FIELDS = {
    "view1_points": "mono_depth",
    "view1_conf": "mono_conf",
    "view2_points": "recon_pts3d",
    "view2_conf": "recon_conf",
    "matching_points": "pts3d_matching",
    "matching_conf": "conf_matching",
}


def require(name: str) -> Path:
    path = PARITY / name
    if not path.is_file():
        pytest.skip(f"{name} is not there: put the parity arrays into ../shared/parity")
    return path


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(require(name)) as held:
        return dict(held)


@cache
def shallow_temporal() -> PomatoNet:
    """A temporal network whose windows have 4 frames."""
    return rule_net(dataclasses.replace(SHALLOW, temporal_length=4))


def shallow_export(folder: Path) -> Path:
    """`shallow_temporal` as ONNX, made by the command line of `model.safetensors` beside it."""
    # The one thing here that needs what the command line does; machines with a GPU alone lack it.
    from command_line import recon4d

    height, width = EXPORT_SIZE
    size = ("--height", height, "--width", width)
    model = folder / "model.safetensors"
    save_safetensors(shallow_temporal(), model)
    with redirect_stdout(StringIO()) as said:
        assert recon4d("export", model, "--out", folder / "onnx", *size) == 0
    assert said.getvalue().count("\n") == 1, "the exporter's remarks are of no use to a user"
    return folder / "onnx"
