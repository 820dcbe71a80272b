"""What building the parts sets in the process."""

import cv2
import pytest

from recon4d_ros.config import Config
from recon4d_ros.pipeline.factory import build_reconstructor


@pytest.fixture(autouse=True)
def threads_as_before():
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize(
    ("processors", "asked", "threads"), [(1, 0, 1), (2, 0, 1), (3, 0, 2), (64, 0, 2), (2, 3, 3)]
)
def test_opencv_has_the_threads_that_processors_allow(monkeypatch, processors, asked, threads):
    monkeypatch.setattr(cv2, "getNumberOfCPUs", lambda: processors)
    build_reconstructor(Config().replaced({"compute.opencv_threads": asked}))
    assert cv2.getNumThreads() == threads
