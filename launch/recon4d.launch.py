"""The node on a live camera: ros2 launch recon4d_ros recon4d.launch.py image:=/camera/image_raw.

Stop it with Ctrl-C (SIGINT).
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

SHARE = Path(get_package_share_directory("recon4d_ros"))
# Fast DDS loses images with its default shared memory; the second name is Jazzy's.
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def arguments():
    """Every argument with its default and meaning."""
    return [
        DeclareLaunchArgument(
            "image", default_value="image", description="image topic of the camera"
        ),
        DeclareLaunchArgument(
            "camera_info", default_value="camera_info", description="CameraInfo topic beside it"
        ),
        DeclareLaunchArgument(
            "transport",
            default_value="",
            choices=["", "raw", "compressed"],
            description="raw reads <image>, compressed <image>/compressed; "
            "empty: as in params_file",
        ),
        DeclareLaunchArgument(
            "namespace", default_value="", description="namespace of the node and its topics"
        ),
        DeclareLaunchArgument(
            "name", default_value="recon4d_node", description="name of the node"
        ),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(SHARE / "config" / "recon4d.yaml"),
            description="YAML file with the node's parameters",
        ),
        DeclareLaunchArgument(
            "predictor",
            default_value="",
            choices=["", "classical", "pomato"],
            description="what gives pointmaps; empty: as in params_file",
        ),
        DeclareLaunchArgument(
            "model",
            default_value="",
            description="checkpoint, or folder of an export, of predictor:=pomato; empty: as in "
            "params_file",
        ),
        DeclareLaunchArgument(
            "tracker",
            default_value="",
            choices=["", "auto", "klt", "dynpt"],
            description="what follows points over windows; empty: as in params_file",
        ),
        DeclareLaunchArgument(
            "map_frame",
            default_value="",
            description="TF frame of the map; empty: as in params_file",
        ),
        DeclareLaunchArgument(
            "base_frame",
            default_value="",
            description="robot frame to publish instead of the camera's, whose mount is read "
            "from /tf_static; empty: as in params_file",
        ),
        *process_arguments(),
    ]


def process_arguments():
    """Those that concern the process and the view, not the reconstruction."""
    return [
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=["true", "false"],
            description="configure and activate the lifecycle node at once",
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="false",
            choices=["true", "false"],
            description="take the time from /clock",
        ),
        DeclareLaunchArgument(
            "rviz", default_value="false", choices=["true", "false"], description="open RViz"
        ),
        DeclareLaunchArgument(
            "rviz_config",
            default_value=str(SHARE / "config" / "recon4d.rviz"),
            description="RViz configuration file",
        ),
        DeclareLaunchArgument(
            "log_level", default_value="info", description="debug, info, warn, error or fatal"
        ),
    ]


def transport_profile():
    """The packaged Fast DDS profile, unless the user has chosen one."""
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return []
    profile = str(SHARE / "config" / "fastdds_large.xml")
    return [SetEnvironmentVariable(name, profile) for name in PROFILE_VARIABLES]


def flag(name):
    """A launch argument that is true or false."""
    return ParameterValue(LaunchConfiguration(name), value_type=bool)


def overrides(context):
    """The parameters given as arguments; what is left empty stays as in the file."""
    names = {
        "transport": "input.transport",
        "predictor": "predictor.name",
        "model": "pomato.model",
        "tracker": "tracker.name",
        "map_frame": "frames.map",
        "base_frame": "frames.base",
    }
    given = {names[name]: LaunchConfiguration(name).perform(context) for name in names}
    return {name: ParameterValue(value, value_type=str) for name, value in given.items() if value}


def node(context):
    """The node itself."""
    parameters = {"autostart": flag("autostart"), "use_sim_time": flag("use_sim_time")}
    return [
        Node(
            package="recon4d_ros",
            executable="recon4d_node",
            name=LaunchConfiguration("name"),
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            emulate_tty=True,
            remappings=[
                ("image", LaunchConfiguration("image")),
                ("camera_info", LaunchConfiguration("camera_info")),
            ],
            parameters=[
                LaunchConfiguration("params_file"),
                {**parameters, **overrides(context)},
            ],
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        )
    ]


def rviz():
    """RViz on the node's topics."""
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[{"use_sim_time": flag("use_sim_time")}],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )


def generate_launch_description():
    """Arguments, transport, node and, on request, RViz."""
    return LaunchDescription(
        [*arguments(), *transport_profile(), OpaqueFunction(function=node), rviz()]
    )
