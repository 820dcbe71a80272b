"""Verdicts of the benchmark table, and that its parts can be loaded at all."""

import importlib
import json
import math
import pkgutil

import pytest

import benchmarks
from benchmarks.table import Row, Target, to_json, to_markdown, to_text

PARTS = [part.name for part in pkgutil.iter_modules(benchmarks.__path__)]


@pytest.mark.parametrize("name", [name for name in PARTS if name != "__main__"])
def test_whatever_a_part_needs_is_there(name):
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize(
    ("target", "value", "reached"),
    [
        (Target(0.01), 0.01, True),
        (Target(0.01), 0.011, False),
        (Target(0.6, better="higher"), 0.6, True),
        (Target(0.6, better="higher"), 0.59, False),
        (Target(0.01), math.nan, False),
        (Target(0.6, better="higher"), math.nan, False),
    ],
)
def test_a_target_is_reached_on_its_better_side_and_never_by_nothing(target, value, reached):
    assert Row("part", "case", "figure", value, target).passed is reached


def test_rows_come_out_whole():
    rows = [
        Row("depth", "room", "AbsRel", 0.05, Target(0.06, goal=0.01), {"constant": 0.4}),
        Row("depth", "kitchen", "AbsRel", math.nan, Target(0.06), note="no run"),
        Row("masks", "dog", "IoU", 0.5),
    ]
    found = json.loads(to_json(rows, {"commit": "abc"}))
    assert [row["ours"] for row in found["rows"]] == [0.05, None, 0.5]
    assert [row["passed"] for row in found["rows"]] == [True, False, None]
    assert [row["verdict"] for row in found["rows"]] == ["reached", "missed", None]
    line = "| room | AbsRel | 0.05 | constant 0.4 | <= 0.06 (0.01) | reached |  |"
    assert line in to_markdown(rows)
    assert "missed" in to_text(rows).splitlines()[2]


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target(0.01, goal=0.005), 0.02, "missed"),
        (Target(0.01, goal=0.005), 0.007, "reached"),
        (Target(0.01, goal=0.005), 0.004, "goal reached"),
        (Target(0.5, better="higher", goal=0.8), 0.7, "reached"),
        (Target(0.5, better="higher", goal=0.8), 0.8, "goal reached"),
        (Target(0.01), 0.004, "reached"),
        (Target(0.01, goal=0.005), math.nan, "missed"),
    ],
)
def test_a_verdict_tells_target_and_goal_apart(target, value, verdict):
    assert target.verdict(value) == verdict
