"""Configurations made of sections of declared parameters; how files and words change them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from recon4d_ros.config.declaration import Parameter, Scalar, check, typed
from recon4d_ros.errors import ConfigError

SectionsT = TypeVar("SectionsT", bound="Sections")


@dataclass(frozen=True)
class Sections:
    """Base of a configuration: each field is a dataclass of `setting`s, made by default.

    Attributes:
        LISTED_BY: what shows all names, for the message about an unknown one.
    """

    LISTED_BY: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every value by itself."""
        for key in self.parameters():
            check(key, self.get(key.name))

    @classmethod
    def parameters(cls) -> Iterator[Parameter]:
        """Every parameter in the order of declaration."""
        for section in dataclasses.fields(cls):
            for key in dataclasses.fields(_section_type(section)):
                default: Any = key.default
                yield Parameter(f"{section.name}.{key.name}", default, **key.metadata)

    @classmethod
    def section_docs(cls) -> dict[str, str]:
        """The one-line meaning of each section."""
        return {
            section.name: (_section_type(section).__doc__ or "").strip()
            for section in dataclasses.fields(cls)
        }

    def get(self, name: str) -> Scalar:
        """Value of a dotted parameter name."""
        section, key = name.split(".", 1)
        value: Scalar = getattr(getattr(self, section), key)
        return value

    def flat(self) -> dict[str, Scalar]:
        """Every dotted name with its value, in the order of declaration."""
        return {parameter.name: self.get(parameter.name) for parameter in self.parameters()}

    def nested(self) -> dict[str, dict[str, Scalar]]:
        """Section, key, value."""
        return dataclasses.asdict(self)

    def replaced(self: SectionsT, changes: Mapping[str, Any]) -> SectionsT:
        """A copy with the dotted names in `changes` set.

        Raises:
            ConfigError: a name does not exist, or a value has the wrong type or range.
        """
        known = {parameter.name: parameter for parameter in self.parameters()}
        sections: dict[str, dict[str, Scalar]] = {}
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(_unknown(name, list(known), self.LISTED_BY))
            section, key = name.split(".", 1)
            sections.setdefault(section, {})[key] = typed(known[name], value)
        parts: dict[str, Any] = {
            section: dataclasses.replace(getattr(self, section), **values)
            for section, values in sections.items()
        }
        return dataclasses.replace(self, **parts)


def load_sections(
    config: SectionsT, path: Path | None = None, overrides: tuple[str, ...] = ()
) -> SectionsT:
    """Defaults, then a YAML file, then `key=value` overrides.

    The file is nested by section, or a ROS parameter file (`node: ros__parameters: ...`).

    Raises:
        ConfigError: the file cannot be read, or a key or value is refused.
    """
    if path is not None:
        config = config.replaced(_read_yaml(path))
    changes = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            example = next(config.parameters())
            raise ConfigError(
                f"'{text}' is not key=value; write for example {example.name}={example.default}"
            )
        changes[name.strip()] = yaml.safe_load(value)
    return config.replaced(changes)


def _section_type(section: dataclasses.Field[Any]) -> Any:
    return section.default_factory


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"cannot read the config file {path}: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected sections of keys")
    if len(content) == 1:
        (only,) = content.values()
        if isinstance(only, Mapping) and "ros__parameters" in only:
            content = only["ros__parameters"]
    return dict(_dotted(content))


def _dotted(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unknown(name: str, known: list[str], listed_by: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown parameter '{name}'; the nearest is '{nearest[0]}' ({listed_by} lists all)"
