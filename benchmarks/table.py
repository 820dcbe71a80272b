"""Rows of figures with what they must reach, as JSON, Markdown and text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Target:
    """What a figure must reach, and the goal beyond.

    Attributes:
        must: the bound.
        better: on which side of the bound a figure passes.
        goal: what would be good; None where there is none beyond the bound.
    """

    must: float
    better: Literal["lower", "higher"] = "lower"
    goal: float | None = None

    def reached_by(self, value: float) -> bool:
        """True if the figure passes the bound; an undefined one never does."""
        return value <= self.must if self.better == "lower" else value >= self.must

    def verdict(self, value: float) -> str:
        """Missed, reached, or the goal beyond as well."""
        if not self.reached_by(value):
            return "missed"
        beyond = None if self.goal is None else replace(self, must=self.goal, goal=None)
        return "goal reached" if beyond is not None and beyond.reached_by(value) else "reached"

    def text(self) -> str:
        """The bound, and the goal after it."""
        sign = "<=" if self.better == "lower" else ">="
        return f"{sign} {self.must:g}" + ("" if self.goal is None else f" ({self.goal:g})")


@dataclass(frozen=True)
class Row:
    """One figure of ours beside those of the peers.

    Attributes:
        part: the benchmark it belongs to.
        case: sequence or setting.
        figure: what was measured, with its unit.
        ours: our value; NaN when it could not be had, `note` says why.
        target: what it must reach; None for information.
        peers: the same figure of others, measured in the same run.
        note: anything a reader must know.
    """

    part: str
    case: str
    figure: str
    ours: float
    target: Target | None = None
    peers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.target.reached_by(self.ours)

    def cells(self) -> list[str]:
        """The row as text."""
        return [
            self.case,
            self.figure,
            number(self.ours),
            ", ".join(f"{name} {number(value)}" for name, value in self.peers.items()),
            self.target.text() if self.target else "",
            self.target.verdict(self.ours) if self.target else "",
            self.note,
        ]


HEAD = ["case", "figure", "ours", "peers", "must reach (goal)", "verdict", "note"]


def number(value: float) -> str:
    """Four significant digits."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def to_markdown(rows: Sequence[Row]) -> str:
    """A table per part."""
    blocks = []
    for part in dict.fromkeys(row.part for row in rows):
        lines = [f"## {part}", "", _line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_line(row.cells()) for row in rows if row.part == part]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def to_text(rows: Sequence[Row]) -> str:
    """The same with aligned columns, each row with its part in front."""
    cells = [["part", *HEAD], *([row.part, *row.cells()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD) + 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def to_json(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """Machine and versions, and every row; undefined figures are null."""
    entries = [
        dataclasses.asdict(row)
        | {"passed": row.passed, "verdict": row.target.verdict(row.ours) if row.target else None}
        for row in rows
    ]
    for entry in entries:
        entry["ours"] = None if math.isnan(entry["ours"]) else entry["ours"]
        entry["peers"] = {k: None if math.isnan(v) else v for k, v in entry["peers"].items()}
    return json.dumps({"about": about, "rows": entries}, indent=1) + "\n"
