"""Quality of service of every topic, chosen to meet the defaults of RViz and of drivers."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from recon4d_ros.config import InputConfig

# RViz subscribes reliably with depth 5; a best-effort subscriber connects too.
OUTPUT = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5)

# A late subscriber receives the newest message at once.
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL
)

# A late subscriber receives the events it missed.
EVENTS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL
)

# As tf2_ros has them.
TF = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=100)
TF_STATIC = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
# Each static broadcaster latches its own last message, so a listener keeps many of them.
TF_STATIC_LISTENER = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL
)

DIAGNOSTICS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10)


def image_input(config: InputConfig) -> QoSProfile:
    """Subscription of the images: the newest only (live), or as many as may wait (replay)."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=config.queue_size if config.mode == "replay" else 1,
        reliability=_reliability(config),
    )


def camera_info_input(config: InputConfig) -> QoSProfile:
    """Subscription of the camera description: only the newest matters."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=_reliability(config))


def _reliability(config: InputConfig) -> ReliabilityPolicy:
    if config.reliability == "reliable":
        return ReliabilityPolicy.RELIABLE
    return ReliabilityPolicy.BEST_EFFORT
