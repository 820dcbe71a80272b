"""ROS parameters of the node, generated from `config.py`: dotted names, types, ranges, meanings.

`autostart` alone is no part of the configuration: it decides what the process does with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from recon4d_ros.config import Config, Parameter, Scalar, parameters
from recon4d_ros.errors import ConfigError

AUTOSTART = "autostart"

# Parameters that rclpy itself declares.
_OF_RCLPY = ("use_sim_time", "start_type_description_service")
_LARGEST_INT = 2**31 - 1
_LARGEST_FLOAT = 1e300


class NodeParameters:
    """Declares every parameter on a node and makes the `Config` of them.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`: that
    is how overrides of unknown names are seen. A refused override leaves the default in place and
    is an error at the next `config()`, until the parameter is set to something valid.
    """

    def __init__(self, node: Node) -> None:
        """Declare everything on `node`."""
        self._node = node
        self._refused: dict[str, str] = {}
        self._is_frozen = False
        for parameter in parameters():
            self._declare(parameter.name, parameter.default, descriptor(parameter))
        self._declare(AUTOSTART, True, _AUTOSTART_DESCRIPTOR)
        node.add_on_set_parameters_callback(self._check_set)

    @property
    def autostart(self) -> bool:
        """Configure and activate without being asked."""
        return bool(self._node.get_parameter(AUTOSTART).value)

    def config(self) -> Config:
        """The configuration that the parameters describe.

        Raises:
            ConfigError: an unknown name, a wrong type or a value out of range was given.
        """
        config = Config()
        # An unknown name is refused by `replaced`, which knows the nearest one.
        config = config.replaced({name: None for name in self._unknown_names()})
        if self._refused:
            raise ConfigError("; ".join(self._refused.values()))
        return config.replaced(self._values())

    def freeze(self, is_frozen: bool) -> None:
        """Refuse changes while a configured node runs on the present values."""
        self._is_frozen = is_frozen

    def _values(self) -> dict[str, Scalar]:
        names = [parameter.name for parameter in parameters()]
        return {name: self._node.get_parameter(name).value for name in names}

    def _unknown_names(self) -> list[str]:
        known = {parameter.name for parameter in parameters()} | {AUTOSTART, *_OF_RCLPY}
        return [name for name in self._node.get_parameters_by_prefix("") if name not in known]

    def _declare(self, name: str, default: Scalar, described: ParameterDescriptor) -> None:
        given: Any = default
        if self._node.has_parameter(name):
            given = self._node.get_parameter(name).value
            self._node.undeclare_parameter(name)
        if isinstance(default, float) and type(given) is int:
            given = float(given)
        try:
            _check_type(name, given, default)
            self._node.declare_parameter(name, given, described, ignore_override=True)
        except (InvalidParameterValueException, InvalidParameterTypeException, ConfigError) as bad:
            self._refused[name] = f"{name}={given!r} is refused: {bad}"
            self._node.declare_parameter(name, default, described, ignore_override=True)

    def _check_set(self, changes: Sequence[RosParameter[Any]]) -> SetParametersResult:
        names = {parameter.name for parameter in parameters()}
        ours = {change.name: change.value for change in changes if change.name in names}
        try:
            self._check_changeable(ours)
            Config().replaced({**self._values(), **ours})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        for name in ours:
            self._refused.pop(name, None)
        return SetParametersResult(successful=True)

    def _check_changeable(self, changes: dict[str, Any]) -> None:
        if self._is_frozen and changes:
            raise ConfigError(
                f"{', '.join(changes)} cannot change while the node is configured; "
                "clean the node up (lifecycle transition 'cleanup'), set it, configure again"
            )


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Type, range and meaning of one parameter."""
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    described = ParameterDescriptor(
        name=parameter.name,
        description=parameter.doc + unit,
        additional_constraints=parameter.bounds if parameter.choices else "",
    )
    low, high = parameter.minimum, parameter.maximum
    if isinstance(parameter.default, bool) or (low is None and high is None):
        return described
    if isinstance(parameter.default, int):
        described.integer_range = [
            IntegerRange(
                from_value=-_LARGEST_INT if low is None else int(low),
                to_value=_LARGEST_INT if high is None else int(high),
            )
        ]
    elif isinstance(parameter.default, float):
        described.floating_point_range = [
            FloatingPointRange(
                from_value=-_LARGEST_FLOAT if low is None else float(low),
                to_value=_LARGEST_FLOAT if high is None else float(high),
            )
        ]
    return described


_AUTOSTART_DESCRIPTOR = ParameterDescriptor(
    name=AUTOSTART,
    description="configure and activate without being asked",
    read_only=True,
)


def _check_type(name: str, value: Any, default: Scalar) -> None:
    if type(value) is not type(default):
        raise ConfigError(f"it is a {type(value).__name__}; expected {type(default).__name__}")
