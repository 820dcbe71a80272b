"""Write config/recon4d.yaml and docs/parameters.md from the config package (`make docs`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import yaml

from recon4d_ros.config import Parameter, Scalar, parameters, section_docs

YAML_PATH = Path("config/recon4d.yaml")
MARKDOWN_PATH = Path("docs/parameters.md")

_YAML_HEAD = """\
# Every parameter with its default. Generated from recon4d_ros/config/ by `make docs`:
# edit a copy.
# For the node: ros2 run recon4d_ros recon4d_node --ros-args --params-file FILE
# For files:    recon4d run SOURCE --out DIR --config FILE
/**:
  ros__parameters:
"""

_MARKDOWN_HEAD = """\
# Parameters

Generated from `recon4d_ros/config/` by `make docs`.

The node takes them as ROS parameters, the command line as `--set name=value` or `--config FILE`;
`config/recon4d.yaml` holds all of them and serves both. A name that does not exist or a value out
of range is an error that names the bound. `recon4d config dump` prints what a run would use.
"""


def parameters_yaml() -> str:
    """A ROS parameter file with every default."""
    lines = [_YAML_HEAD.rstrip()]
    docs = section_docs()
    for section, group in _sections():
        lines.append(f"    {section}:  # {docs[section]}")
        for parameter in group:
            key = parameter.name.split(".", 1)[1]
            lines.append(f"      # {parameter.doc} ({_range(parameter)})")
            lines.append(f"      {key}: {_scalar(parameter.default)}")
    return "\n".join(lines) + "\n"


def parameters_markdown() -> str:
    """A table of every parameter, by section."""
    blocks = [_MARKDOWN_HEAD.rstrip()]
    docs = section_docs()
    for section, group in _sections():
        rows = [f"## {section}", "", docs[section], ""]
        rows += ["| name | default | unit | range | meaning |", "|---|---|---|---|---|"]
        rows += [
            f"| `{parameter.name}` | `{_scalar(parameter.default)}` | {parameter.unit} | "
            f"{parameter.bounds} | {parameter.doc} |"
            for parameter in group
        ]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


def generated_files() -> dict[Path, str]:
    """Content of each generated file, by its path in the repository."""
    return {YAML_PATH: parameters_yaml(), MARKDOWN_PATH: parameters_markdown()}


def _sections() -> Iterator[tuple[str, Iterator[Parameter]]]:
    return groupby(parameters(), key=lambda parameter: parameter.name.split(".", 1)[0])


def _range(parameter: Parameter) -> str:
    return f"{parameter.bounds} {parameter.unit}".rstrip()


def _scalar(value: Scalar) -> str:
    """The value as YAML reads it back, with its type."""
    return yaml.safe_dump(value, default_style='"' if isinstance(value, str) else None).split(
        "\n"
    )[0]


def main() -> int:
    """Write the files into the repository this module lies in."""
    root = Path(__file__).resolve().parents[1]
    for path, content in generated_files().items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(content)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
