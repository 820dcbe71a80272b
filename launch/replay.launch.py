"""The node on a recorded bag: ros2 launch recon4d_ros replay.launch.py bag:=/data/walk.

The bag is played with /clock once the node listens; everything stops when it has ended. Stop
earlier with Ctrl-C (SIGINT).
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

SHARE = Path(get_package_share_directory("recon4d_ros"))

# Arguments handed on to the node, with the defaults that suit a bag.
NODE_ARGUMENTS = {
    "image": ("/camera/image_raw", "image topic in the bag"),
    "camera_info": ("/camera/camera_info", "CameraInfo topic in the bag"),
    "transport": (
        "",
        "raw reads <image>, compressed <image>/compressed; empty: as in params_file",
    ),
    "params_file": (
        str(SHARE / "config" / "recon4d.yaml"),
        "YAML file with the node's parameters",
    ),
    "predictor": ("", "classical or pomato; empty: as in params_file"),
    "model": ("", "model of predictor:=pomato; empty: as in params_file"),
    "tracker": ("", "auto, klt or dynpt; empty: as in params_file"),
    "map_frame": ("", "TF frame of the map; empty: as in params_file"),
    "base_frame": ("", "robot frame to publish instead of the camera's; empty: as in params_file"),
    "rviz": ("false", "open RViz"),
    "rviz_config": (str(SHARE / "config" / "recon4d.rviz"), "RViz configuration file"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def arguments():
    """Every argument with its meaning, and its default where there can be one."""
    return [
        DeclareLaunchArgument("bag", description="rosbag2 folder, or one .mcap or .db3 file"),
        DeclareLaunchArgument("rate", default_value="1.0", description="playing speed"),
        DeclareLaunchArgument(
            "loop",
            default_value="false",
            choices=["true", "false"],
            description="start the bag again at its end",
        ),
        DeclareLaunchArgument(
            "wait", default_value="60.0", description="longest wait for the node in s"
        ),
        *(
            DeclareLaunchArgument(name, default_value=default, description=meaning)
            for name, (default, meaning) in NODE_ARGUMENTS.items()
        ),
    ]


def node():
    """The live launch file, on simulated time."""
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "recon4d.launch.py"))
    handed_on = {name: LaunchConfiguration(name) for name in NODE_ARGUMENTS}
    return IncludeLaunchDescription(
        source, launch_arguments={**handed_on, "use_sim_time": "true"}.items()
    )


def player(condition, *options):
    """The bag, played by the package's own player: it waits for the node."""
    return ExecuteProcess(
        cmd=[
            "ros2",
            "run",
            "recon4d_ros",
            "recon4d",
            "play",
            LaunchConfiguration("bag"),
            "--rate",
            LaunchConfiguration("rate"),
            "--wait",
            LaunchConfiguration("wait"),
            *options,
        ],
        name="recon4d_play",
        output="screen",
        condition=condition,
    )


def generate_launch_description():
    """Arguments, node, player; the end of the bag ends everything."""
    once = player(UnlessCondition(LaunchConfiguration("loop")))
    looping = player(IfCondition(LaunchConfiguration("loop")), "--loop")
    at_the_end = RegisterEventHandler(
        OnProcessExit(target_action=once, on_exit=[EmitEvent(event=Shutdown(reason="bag ended"))])
    )
    return LaunchDescription([*arguments(), node(), at_the_end, once, looping])
