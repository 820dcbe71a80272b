"""Garbage is sought seldom: a seventh of a network export is full rounds over what torch keeps."""

import gc


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
