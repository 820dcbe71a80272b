"""How one parameter is declared, and how a value for it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recon4d_ros.errors import ConfigError

Scalar = bool | int | float | str


def setting(
    default: Scalar,
    doc: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A parameter: its default, meaning, unit and range (bounds included)."""
    meta = {"doc": doc, "unit": unit, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Parameter:
    """One declared parameter."""

    name: str
    default: Scalar
    doc: str
    unit: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def bounds(self) -> str:
        """The range in words, for messages and tables."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.minimum is None and self.maximum is None:
            return "any " + type(self.default).__name__
        return f"{self.minimum} to {self.maximum}"


def typed(parameter: Parameter, value: Any) -> Scalar:
    """The value as the parameter's type; an int where a float is declared is one.

    Raises:
        ConfigError: the value has another type.
    """
    kind = type(parameter.default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and value is None:
        return ""
    if type(value) is not kind:
        raise ConfigError(
            f"{parameter.name}={value!r} is a {type(value).__name__}; "
            f"expected {kind.__name__} ({parameter.bounds})"
        )
    return kind(value)  # type: ignore[no-any-return]


def check(parameter: Parameter, value: Scalar) -> None:
    """Refuse a value out of range.

    Raises:
        ConfigError: the value is out of the bounds or none of the choices; NaN is neither.
    """
    low, high = parameter.minimum, parameter.maximum
    bad = bool(parameter.choices) and value not in parameter.choices
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Written so that NaN fails too.
        bad = bad or not ((low is None or value >= low) and (high is None or value <= high))
    if bad:
        unit = f" {parameter.unit}" if parameter.unit else ""
        raise ConfigError(
            f"{parameter.name}={value!r} is refused; expected {parameter.bounds}{unit}"
        )
