"""ROS parameters are the configuration, no more and no less."""

import pytest
import rclpy
from rcl_interfaces.msg import ParameterType
from rclpy.parameter import Parameter
from ros_support import context_in, new_domain

from recon4d_ros.config import Config, parameters
from recon4d_ros.errors import ConfigError
from recon4d_ros.ros.params import AUTOSTART, NodeParameters

pytestmark = pytest.mark.ros

OF_RCLPY = {"use_sim_time", "start_type_description_service"}


@pytest.fixture(scope="module")
def context():
    with context_in(new_domain()) as context:
        yield context


@pytest.fixture
def declare(context):
    nodes = []

    def make(**overrides):
        given = [Parameter(k.replace("__", "."), value=v) for k, v in overrides.items()]
        node = rclpy.create_node(
            f"params_{len(nodes)}",
            context=context,
            parameter_overrides=given,
            automatically_declare_parameters_from_overrides=True,
        )
        nodes.append(node)
        return node, NodeParameters(node)

    yield make
    for node in nodes:
        node.destroy_node()


def test_every_parameter_of_the_configuration_is_a_ros_parameter_and_nothing_else(declare):
    node, _ = declare()
    declared = set(node.get_parameters_by_prefix("")) - OF_RCLPY - {AUTOSTART}
    assert declared == {parameter.name for parameter in parameters()}


def test_types_ranges_and_meanings_are_those_of_the_configuration(declare):
    node, _ = declare()
    kinds = {
        bool: ParameterType.PARAMETER_BOOL,
        int: ParameterType.PARAMETER_INTEGER,
        float: ParameterType.PARAMETER_DOUBLE,
        str: ParameterType.PARAMETER_STRING,
    }
    for parameter in parameters():
        described = node.describe_parameter(parameter.name)
        assert described.type == kinds[type(parameter.default)], parameter.name
        assert described.description.startswith(parameter.doc), parameter.name
        ranges = [*described.integer_range, *described.floating_point_range]
        if parameter.minimum is not None:
            assert ranges[0].from_value == parameter.minimum, parameter.name
        if parameter.maximum is not None:
            assert ranges[0].to_value == parameter.maximum, parameter.name
        if parameter.choices:
            assert parameter.choices[0] in described.additional_constraints


def test_defaults_give_the_default_configuration(declare):
    assert declare()[1].config() == Config()


def test_overrides_arrive_and_an_integer_serves_as_a_number(declare):
    _, declared = declare(window__stride=2, map__publish_rate=2, frames__map="world")
    config = declared.config()
    assert (config.window.stride, config.map.publish_rate) == (2, 2.0)
    assert config.frames.map == "world"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"window__size": 1000}, ("window.size", "1000", "64")),
        ({"window__size": "twelve"}, ("window.size", "twelve", "int")),
        ({"input__mode": "offline"}, ("input.mode", "offline", "live", "replay")),
        ({"window__strid": 2}, ("window.strid", "window.stride")),
        ({"map__publish_rate": float("nan")}, ("map.publish_rate", "nan")),
        ({"window__stride": 12}, ("window.stride", "window.final_lag")),
    ],
)
def test_a_refused_override_is_named_with_what_was_expected(declare, overrides, words):
    _, declared = declare(**overrides)
    with pytest.raises(ConfigError) as error:
        declared.config()
    assert all(word in str(error.value) for word in words), error.value


def test_setting_a_good_value_mends_a_refused_override(declare):
    node, declared = declare(window__size=1000)
    (result,) = node.set_parameters([Parameter("window.size", value=16)])
    assert result.successful
    assert declared.config().window.size == 16


@pytest.mark.parametrize("value", [1000, "x", -1])
def test_a_bad_value_is_refused_with_a_reason(declare, value):
    node, declared = declare()
    (result,) = node.set_parameters([Parameter("window.size", value=value)])
    assert not result.successful
    assert result.reason
    assert declared.config() == Config()


def test_a_configured_node_refuses_changes_until_it_is_cleaned_up(declare):
    node, declared = declare()
    declared.freeze(True)
    (result,) = node.set_parameters([Parameter("window.size", value=16)])
    assert not result.successful
    assert "cleanup" in result.reason
    declared.freeze(False)
    assert node.set_parameters([Parameter("window.size", value=16)])[0].successful


def test_autostart_is_read_only(declare):
    node, declared = declare(autostart=False)
    assert not declared.autostart
    assert not node.set_parameters([Parameter("autostart", value=True)])[0].successful
