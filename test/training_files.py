"""A small exact scene of plates, and files of it in the layouts of public data sets."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from recon4d_ros.storage.training_data.tfrecord import masked_crc32c

HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 6
WALL = 8.0
HALF = np.array([[0.7, 0.5], [0.5, 0.6], [0.6, 0.3]])
START = np.array([[-1.0, 0.1, 4.0], [0.9, -0.6, 5.0], [0.9, 0.9, 6.0]])
STEP = np.array([[0.3, 0.0, 0.05], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
SPIN_DEG = np.array([0.0, 3.0, 0.0])  # of each plate about its normal, per frame


@dataclass(frozen=True, eq=False)
class Plates:
    """A wall and three plates: the first slides, the second spins, the third stands.

    World axes are those of the first camera; z-depths and bodies (0 the wall) are exact.

    Attributes:
        f: focal length, px.
        is_still: no plate moves.
        pace: of the camera.
    """

    f: float
    is_still: bool = False
    pace: float = 1.0

    @property
    def K(self) -> np.ndarray:
        return np.array([[self.f, 0, (WIDTH - 1) / 2], [0, self.f, (HEIGHT - 1) / 2], [0, 0, 1.0]])

    def T_world_cam(self, frame: int) -> np.ndarray:
        T = np.eye(4)
        T[:3, :3] = Rotation.from_rotvec([0.004 * frame, -0.006 * frame, 0.01 * frame]).as_matrix()
        T[:3, 3] = self.pace * frame * np.array([0.12, -0.05, 0.02])
        return T

    def T_world_body(self, plate: int, frame: int) -> np.ndarray:
        T, time = np.eye(4), 0 if self.is_still else frame
        T[:3, :3] = Rotation.from_euler("z", SPIN_DEG[plate] * time, degrees=True).as_matrix()
        T[:3, 3] = START[plate] + STEP[plate] * time
        return T

    def cast(self, uv: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """z-depth and body seen at pixels (P, 2)."""
        T = self.T_world_cam(frame)
        rays = np.concatenate([uv, np.ones((len(uv), 1))], 1) @ np.linalg.inv(self.K).T
        rays = rays @ T[:3, :3].T
        z = (WALL - T[2, 3]) / rays[:, 2]
        body = np.zeros(len(uv), int)
        for plate in range(3):
            T_body = self.T_world_body(plate, frame)
            along = (T_body[2, 3] - T[2, 3]) / rays[:, 2]
            hit = T[:3, 3] + along[:, None] * rays
            local = (hit - T_body[:3, 3]) @ T_body[:3, :3]
            nearer = (abs(local[:, :2]) <= HALF[plate]).all(1) & (along < z)
            z, body = np.where(nearer, along, z), np.where(nearer, plate + 1, body)
        return z, body

    def maps(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rgb, z-depth and bodies."""
        x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        z, body = self.cast(np.stack([x.ravel(), y.ravel()], 1).astype(float), frame)
        z, body = z.reshape(HEIGHT, WIDTH), body.reshape(HEIGHT, WIDTH)
        colours = np.array(
            [[90, 120, 60], [200, 30, 10], [20, 160, 230], [240, 240, 80]], np.uint8
        )
        return colours[body], z, body

    def tracks(self, queries: np.ndarray, body: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True pixels (T, N, 2) and bodies seen there (T, N) of points on known bodies."""
        uv = np.zeros((NUM_FRAMES, len(queries), 2))
        seen = np.zeros((NUM_FRAMES, len(queries)), int)
        for n, (start, x, y) in enumerate(queries):
            start = int(start)
            z, _ = self.cast(np.array([[x, y]]), start)
            point = np.linalg.inv(self.K) @ [x, y, 1.0] * z
            for frame in range(NUM_FRAMES):
                T = np.eye(4)
                if body[n] > 0:
                    now = self.T_world_body(body[n] - 1, frame)
                    T = now @ np.linalg.inv(self.T_world_body(body[n] - 1, start))
                world = T @ self.T_world_cam(start) @ [*point, 1.0]
                image = self.K @ (np.linalg.inv(self.T_world_cam(frame)) @ world)[:3]
                uv[frame, n] = image[:2] / image[2]
        for frame in range(NUM_FRAMES):
            seen[frame] = self.cast(uv[frame], frame)[1]
        return uv, seen


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values) -> bytes:
    if isinstance(values, list):
        return field(1, b"".join(field(1, one) for one in values))
    if values.dtype == np.int64:
        return field(3, field(1, b"".join(varint(int(v) % 2**64) for v in values.ravel())))
    return field(2, field(1, values.astype("<f4").tobytes()))


def example(features: dict) -> bytes:
    entries = (field(1, field(1, k.encode()) + field(2, feature(v))) for k, v in features.items())
    return field(1, b"".join(entries))


def write_records(path: Path, records: list[bytes]) -> None:
    content = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        content += length + struct.pack("<I", masked_crc32c(length))
        content += record + struct.pack("<I", masked_crc32c(record))
    path.write_bytes(content)


def kubric_features(plates: Plates) -> dict:
    """A MOVi example of the plates; `plates.f` must be 35 / 32 of the width."""
    maps = [plates.maps(frame) for frame in range(NUM_FRAMES)]
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(plates.K).T
    distance = np.stack([z for _, z, _ in maps]) * np.linalg.norm(rays, axis=-1)
    low, high = distance.min(), distance.max()
    stored = np.rint((distance - low) / (high - low) * 65535).astype(np.uint16)
    cameras = np.stack([plates.T_world_cam(t) for t in range(NUM_FRAMES)])
    cameras = cameras @ np.diag([1.0, -1, -1, 1])
    bodies = np.stack([[plates.T_world_body(n, t) for t in range(NUM_FRAMES)] for n in range(3)])
    return {
        "video": [png(rgb[..., ::-1]) for rgb, _, _ in maps],
        "segmentations": [png(body.astype(np.uint8)) for _, _, body in maps],
        "depth": [png(image) for image in stored],
        "metadata/depth_range": np.array([low, high]),
        "metadata/num_frames": np.array([NUM_FRAMES]),
        "instances/positions": bodies[:, :, :3, 3],
        "instances/quaternions": wxyz(bodies),
        "instances/is_dynamic": np.zeros(3, np.int64),
        "camera/positions": cameras[:, :3, 3],
        "camera/quaternions": wxyz(cameras),
        "camera/focal_length": np.array([35.0]),
        "camera/sensor_width": np.array([32.0]),
    }


def wxyz(T: np.ndarray) -> np.ndarray:
    quat = Rotation.from_matrix(T[..., :3, :3].reshape(-1, 3, 3)).as_quat()
    return np.roll(quat, 1, axis=-1).reshape(*T.shape[:-2], 4)


def write_tartanair(folder: Path, plates: Plates) -> None:
    """A flight through the standing plates; `plates.f` must be half of the width."""
    (folder / "image_left").mkdir(parents=True)
    (folder / "depth_left").mkdir()
    R_cam_body = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    lines = []
    for frame in range(NUM_FRAMES):
        rgb, z, _ = plates.maps(frame)
        cv2.imwrite(str(folder / "image_left" / f"{frame:06d}_left.png"), rgb[..., ::-1])
        np.save(folder / "depth_left" / f"{frame:06d}_left_depth.npy", z.astype(np.float32))
        T = plates.T_world_cam(frame)
        quat = Rotation.from_matrix(T[:3, :3] @ R_cam_body).as_quat()
        lines.append(" ".join(f"{value:.12f}" for value in [*T[:3, 3], *quat]))
    (folder / "pose_left.txt").write_text("\n".join(lines) + "\n")


def write_point_odyssey(folder: Path, plates: Plates) -> None:
    """The plates with every fourth pixel of the first frame tracked, compressed or not."""
    (folder / "rgbs").mkdir(parents=True)
    x, y = np.meshgrid(np.arange(0, WIDTH, 4), np.arange(0, HEIGHT, 4))
    queries = np.stack([np.zeros(x.size), x.ravel(), y.ravel()], 1)
    z, body = plates.cast(queries[:, 1:], 0)
    uv, shown = plates.tracks(queries, body)
    points = np.concatenate([queries[:, 1:], np.ones((len(z), 1))], 1) @ np.linalg.inv(plates.K).T
    world = [points * z[:, None]]
    for frame in range(1, NUM_FRAMES):
        moved = world[0].copy()
        for plate in range(3):
            T = plates.T_world_body(plate, frame) @ np.linalg.inv(plates.T_world_body(plate, 0))
            on = body == plate + 1
            moved[on] = moved[on] @ T[:3, :3].T + T[:3, 3]
        world.append(moved)
    for frame in range(NUM_FRAMES):
        rgb = plates.maps(frame)[0]
        cv2.imwrite(str(folder / "rgbs" / f"rgb_{frame:05d}.jpg"), rgb[..., ::-1])
    poses = np.stack([np.linalg.inv(plates.T_world_cam(t)) for t in range(NUM_FRAMES)])
    valids = np.ones(uv.shape[:2], bool)
    valids[3, 0] = False
    np.savez(
        folder / "anno.npz",
        trajs_2d=uv.astype(np.float32),
        trajs_3d=np.stack(world).astype(np.float32),
        visibs=shown == body,
        valids=valids,
        intrinsics=np.tile(plates.K, (NUM_FRAMES, 1, 1)),
        extrinsics=poses.astype(np.float32) * np.float32(1 + 3e-6),
    )


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)
