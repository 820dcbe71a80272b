"""Parameters of the ROS 2 node: its topics, frames and files."""

from __future__ import annotations

from dataclasses import dataclass

from recon4d_ros.config.declaration import setting


@dataclass(frozen=True)
class InputConfig:
    """The image stream of the node."""

    transport: str = setting(
        "raw", "topic read: image or image/compressed", choices=("raw", "compressed")
    )
    reliability: str = setting(
        "best_effort",
        "QoS of the image subscription; best_effort matches every publisher",
        choices=("best_effort", "reliable"),
    )
    mode: str = setting(
        "live",
        "live: the newest image wins and the others are dropped and counted; "
        "replay: a bounded queue from which nothing is dropped",
        choices=("live", "replay"),
    )
    dense_every: int = setting(
        10,
        "live, on a machine too slow for more: every n-th processed image gets depth and a mask, "
        "the others their pose only",
        minimum=1,
        maximum=1000,
    )
    queue_size: int = setting(
        30, "images that wait in replay mode", unit="images", minimum=1, maximum=1000
    )
    camera_info_timeout: float = setting(
        2.0,
        "wait for the first camera_info, after which the intrinsics are estimated",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    time_jump: float = setting(
        0.5,
        "stamps that go back by more start a new reconstruction; by less, the image is dropped",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )
    change_after: int = setting(
        5,
        "images in a row of another size or frame after which the camera has changed",
        unit="images",
        minimum=1,
        maximum=100,
    )
    stale_after: float = setting(
        2.0, "silence after which the image stream is stale", unit="s", minimum=0.1, maximum=60.0
    )


@dataclass(frozen=True)
class FramesConfig:
    """Names of the coordinate frames in TF."""

    map: str = setting("map", "frame of the map")
    camera: str = setting("", "optical frame of the camera; empty: that of the images")
    base: str = setting(
        "", "robot frame to publish instead of the camera's; its mount is read from /tf_static"
    )


@dataclass(frozen=True)
class OutputConfig:
    """What the node publishes and saves."""

    publish_tf: bool = setting(True, "publish the pose on /tf")
    path_length: int = setting(
        2000, "newest poses kept in ~/path", unit="poses", minimum=1, maximum=100_000
    )
    diagnostics_rate: float = setting(
        1.0, "publications of /diagnostics", unit="Hz", minimum=0.1, maximum=10.0
    )
    save_folder: str = setting("~/.ros/recon4d", "folder of ~/save_map, the only one written to")
