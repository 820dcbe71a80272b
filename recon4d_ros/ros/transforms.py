"""Which frame the node publishes in /tf, and the static mount of the camera.

With `frames.base` empty the camera's optical frame is the child of the map. With it set, the base
is, and the mount T_base_cam comes from /tf_static; while the mount is unknown nothing may be
published, because a frame of TF has one parent.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from geometry_msgs.msg import TransformStamped
from torch import Tensor

from recon4d_ros.config import FramesConfig
from recon4d_ros.errors import FrameError, GeometryError
from recon4d_ros.geometry import se3
from recon4d_ros.ros.conversions import matrix_of_transform


class StaticTree:
    """The transforms of /tf_static, as a forest of child -> parent edges."""

    def __init__(self) -> None:
        """Know nothing."""
        self._T_parent_child: dict[str, tuple[str, Tensor]] = {}

    def add(self, transforms: Iterable[TransformStamped]) -> tuple[str, ...]:
        """Take in transforms; the newest of a child wins.

        Returns:
            What was refused and why, one text per transform.
        """
        refused = []
        for message in transforms:
            try:
                T_parent_child = matrix_of_transform(message.transform)
            except GeometryError as error:
                refused.append(f"static transform of '{message.child_frame_id}': {error}")
                continue
            parent = message.header.frame_id.lstrip("/")
            self._T_parent_child[message.child_frame_id.lstrip("/")] = (parent, T_parent_child)
        return tuple(refused)

    def lookup(self, target: str, source: str) -> Tensor:
        """T_target_source (4, 4) float64.

        Raises:
            FrameError: the two frames are not connected; names the ones that are missing.
        """
        upwards, from_source = self._ancestors(target), self._ancestors(source)
        common = next((frame for frame in from_source if frame in upwards), None)
        if common is None:
            raise FrameError(
                f"/tf_static does not connect '{target}' and '{source}' ("
                f"{self._describe(target)}, {self._describe(source)}); publish the static mount "
                "of the camera"
            )
        return se3.compose(se3.inverse(upwards[common]), from_source[common])

    def _ancestors(self, frame: str) -> dict[str, Tensor]:
        """T_ancestor_frame of the frame itself and of everything above it, nearest first."""
        T_ancestor_frame = torch.eye(4, dtype=torch.float64)
        found = {frame: T_ancestor_frame}
        while frame in self._T_parent_child:
            parent, T_parent_child = self._T_parent_child[frame]
            if parent in found:  # a loop: TF would refuse it as well
                break
            T_ancestor_frame = se3.compose(T_parent_child, T_ancestor_frame)
            found[parent] = T_ancestor_frame
            frame = parent
        return found

    def _describe(self, frame: str) -> str:
        parents = {parent for parent, _ in self._T_parent_child.values()}
        known = frame in self._T_parent_child or frame in parents
        return f"'{frame}' is {'known' if known else 'missing'}"


class PoseFrames:
    """Turns the camera's pose into the pose of the frame that is published."""

    def __init__(self, config: FramesConfig, tree: StaticTree) -> None:
        """Use the names of `config` and the mounts of `tree`."""
        self._config = config
        self._tree = tree

    @property
    def map(self) -> str:
        """Name of the map frame."""
        return self._config.map

    def camera(self, image_frame: str) -> str:
        """Name of the camera's optical frame; empty when neither image nor user give one."""
        return self._config.camera or image_frame.lstrip("/")

    def published(self, T_map_cam: Tensor, image_frame: str) -> tuple[str, Tensor]:
        """Child frame and its pose T_map_child (4, 4).

        Raises:
            FrameError: the camera has no frame, or its mount on the base is unknown.
        """
        camera, base = self.camera(image_frame), self._config.base
        if not camera:
            raise FrameError(
                "the images carry an empty frame_id; expected the camera's optical frame; set it "
                "in the camera driver, or set the parameter frames.camera"
            )
        if not base or base == camera:
            return camera, T_map_cam
        return base, se3.compose(T_map_cam, self._tree.lookup(camera, base))
