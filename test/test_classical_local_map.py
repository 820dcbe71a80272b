"""Lost points that come back into sight, on a textured wall whose images are known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from rendered_stream import frames

from recon4d_ros.config import Config
from recon4d_ros.predictors.classical.local_map import LocalMap
from recon4d_ros.predictors.classical.odometry import Odometry
from recon4d_ros.predictors.classical.pinhole import Pinhole
from recon4d_ros.predictors.classical.points import Points
from recon4d_ros.predictors.classical.shutter import ReadoutTime, Shutter
from recon4d_ros.predictors.classical.tracks import TrackTable, query_points

HEIGHT, WIDTH = 180, 240
CAMERA = Pinhole(200.0, 200.0, 119.5, 89.5, HEIGHT)
DISTANCE = 2.0
STEP_PX = np.array([6.0, -4.0])  # of the wall between keyframe 0 and the newest frame
DRIFT_PX = np.array([5.0, 5.0])
AWAY, NEWEST = 1, 2


def wall(shift: np.ndarray) -> np.ndarray:
    """(H, W) the wall, moved in the image by so many whole px."""
    noise = np.random.default_rng(0).normal(size=(HEIGHT + 64, WIDTH + 64)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    image = np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    x, y = 32 - shift.astype(int)
    return image[y : y + HEIGHT, x : x + WIDTH]


def seen_from(shift: np.ndarray) -> np.ndarray:
    """T_cam_world (4, 4) of the camera that sees the wall moved by so many px."""
    T = np.eye(4)
    T[:2, 3] = shift / CAMERA.focal * DISTANCE
    return T


class Scene:
    """Points of keyframe 0, none of which the frame after it shows; a new frame after that."""

    def __init__(self, shift: np.ndarray = STEP_PX) -> None:
        self.table = TrackTable(rows=400, columns=8)
        self.shutter = Shutter(CAMERA, ReadoutTime())
        self.poses = {0: np.eye(4), AWAY: np.eye(4), NEWEST: seen_from(shift)}
        for frame in self.poses:
            self.shutter.open(frame, frame * 100_000_000)
            self.table.open_column(frame)
        grey = wall(np.zeros(2))
        uv = query_points(grey, np.zeros((0, 2)), 20, seed=0)
        still = np.zeros(len(uv), bool)
        self.rows = self.table.add(0, uv, np.full(len(uv), 1 / DISTANCE), still)
        self.table.rho_sigma[self.rows] = 0.01
        self.table.see(self.rows, AWAY, uv, still)
        points = Points(self.table, self.poses, self.shutter)
        self.local_map = LocalMap(self.table, points, max_mismatch_px=0.7)
        self.local_map.add(0, self.poses[0], grey)

    def show(self, grey: np.ndarray) -> np.ndarray:
        """Rows that a new image shows again."""
        self.local_map.add(NEWEST, self.poses[NEWEST], grey)
        return self.table.rows_in(NEWEST)

    def errors_px(self, rows: np.ndarray) -> np.ndarray:
        found = self.table.uv[rows, self.table.column(NEWEST)]
        return np.linalg.norm(found - self.table.host_uv[rows] - STEP_PX, axis=1)


def test_points_are_found_where_the_wall_shows_them():
    scene = Scene()
    assert len(scene.table.rows_in(AWAY)) == 0
    found = scene.show(wall(STEP_PX))
    assert len(found) > 0.8 * len(scene.rows)
    assert np.percentile(scene.errors_px(found), 95) < 0.1  # rims of the image do worse


def test_a_pose_that_drifted_is_no_obstacle():
    scene = Scene(STEP_PX + DRIFT_PX)
    found = scene.show(wall(STEP_PX))
    assert len(found) > 0.8 * len(scene.rows)
    assert np.percentile(scene.errors_px(found), 95) < 0.1  # rims of the image do worse


def test_what_somebody_stands_before_is_not_found():
    scene, grey = Scene(), wall(STEP_PX).copy()
    grey[:, : WIDTH // 2] = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH // 2))
    found = scene.show(grey)
    behind = scene.table.host_uv[:, 0] + STEP_PX[0] < WIDTH / 2 - 10
    assert len(found) > 0.3 * len(scene.rows)
    assert behind[found].sum() < 0.03 * behind[scene.rows].sum()


def test_nothing_is_found_far_from_where_it_is_expected():
    assert len(Scene(STEP_PX + 3 * DRIFT_PX).show(wall(STEP_PX))) == 0


@pytest.mark.parametrize("column, value", [("rho_sigma", 0.3), ("moving", True), ("alive", True)])
def test_points_of_unsure_depth_those_that_move_and_those_in_sight_are_not_sought(column, value):
    scene = Scene()
    getattr(scene.table, column)[scene.rows[::2]] = value
    found = scene.show(wall(STEP_PX))
    assert len(found) > 0
    assert set(found) <= set(scene.rows[1::2])


def test_a_handful_is_not_believed():
    scene, grey = Scene(), wall(STEP_PX).copy()
    grey[:, 60:] = 0  # five points are left
    assert len(scene.show(grey)) == 0
    scene, grey = Scene(), wall(STEP_PX).copy()
    grey[:, 80:] = 0
    assert len(scene.show(grey)) >= 10


def test_points_behind_the_camera_are_not_sought():
    scene = Scene()
    scene.poses[NEWEST][2, 3] = -2 * DISTANCE
    assert len(scene.show(wall(STEP_PX))) == 0


def test_images_of_forgotten_keyframes_go_and_their_points_are_sought_no_more():
    scene = Scene()
    scene.local_map.forget_all_but([AWAY])
    assert len(scene.show(wall(STEP_PX))) == 0


# ---------------------------------------------------------------- in the odometry
HIDDEN = range(20, 23)
LENGTH = 28  # the odometry remembers its last twelve


def test_the_odometry_goes_on_with_points_that_were_hidden_and_keeps_few_images():
    config, stream = Config(), frames("static_room", LENGTH, step=2)
    few = replace(config.odometry, num_keyframes=2, keyframe_px=4.0)
    view = stream[0].intrinsics
    camera = Pinhole(view.fx, view.fy, view.cx, view.cy, view.height)
    odometry = Odometry(few, config.window, camera, ReadoutTime())
    for frame in stream:
        grey = cv2.cvtColor(frame.rgb.numpy(), cv2.COLOR_RGB2GRAY)
        if frame.index in HIDDEN:
            grey[:, : view.width // 2] = 0
        odometry.track(frame.index, frame.stamp_ns, grey)
        odometry.adjust()
    _, uv, _ = odometry.tracks(range(LENGTH))
    seen = np.isfinite(uv[..., 0])
    before, after = seen[: HIDDEN.start].any(axis=0), seen[HIDDEN.stop :].any(axis=0)
    back = before & ~seen[HIDDEN.start : HIDDEN.stop].any(axis=0) & after
    assert back.sum() > 20  # measured: 30, and none without the local map
    assert odometry._local_map._images.keys() == set(odometry._keyframes)
