"""POMATO's stream on ONNX Runtime: the same results as on torch."""

import pytest
import torch
from pomato_fixtures import tiny_export
from pomato_stream import config, model_file, noise_frame

from recon4d_ros.errors import ConfigError, ModelError
from recon4d_ros.predictors.pomato.loading import load_predictor

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory)


def test_a_stream_is_the_same_on_both_runtimes(exported, tmp_path):
    on_torch = load_predictor(config(pomato__model=str(model_file("temporal", tmp_path))))
    settings = config(pomato__model=str(exported), pomato__runtime="onnx")
    on_onnx = load_predictor(settings)
    for index in range(3):
        a, b = (each.track(noise_frame(index)) for each in (on_torch, on_onnx))
        assert torch.allclose(a.depth, b.depth, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_an_export_for_another_size_or_precision_is_refused(exported):
    settings = {"pomato__model": str(exported), "pomato__runtime": "onnx"}
    stream = load_predictor(config(**settings))
    with pytest.raises(ModelError, match="exported for 48 x 80"):
        stream.track(noise_frame(0, (60, 80)))
    with pytest.raises(ConfigError, match="no effect on runtime onnx"):
        load_predictor(config(**settings, pomato__precision="bf16"))
