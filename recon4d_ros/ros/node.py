"""The ROS 2 node: a camera topic in, pose, static map, moving points, depth and mask out.

A lifecycle node that configures and activates itself (parameter `autostart`). The executor's
thread only puts messages into a mailbox; workers run the reconstruction and publish.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from recon4d_ros.config import Config
from recon4d_ros.errors import Recon4DError
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.ros import qos
from recon4d_ros.ros.diagnostics import Report, diagnostics_message
from recon4d_ros.ros.events import EventLog, NodeEvent
from recon4d_ros.ros.executor import new_executor
from recon4d_ros.ros.intake import DropCause, DroppedImageError, Intake
from recon4d_ros.ros.params import NodeParameters
from recon4d_ros.ros.perception import Arrival, Core, Perception, Status
from recon4d_ros.ros.profile import ensure_transport_profile
from recon4d_ros.ros.publishers import Outputs
from recon4d_ros.ros.signals import StopRequest
from recon4d_ros.ros.statistics import Statistics
from recon4d_ros.ros.transforms import PoseFrames, StaticTree
from recon4d_ros.ros.workers import Workers
from recon4d_ros.storage.messages import is_rectified_topic

# The executor looks this often whether the node stops.
_IDLE_S = 0.1


@dataclass(frozen=True, eq=False)
class _Configured:
    """Everything that exists between `configure` and `cleanup`."""

    config: Config
    intake: Intake
    outputs: Outputs
    statistics: Statistics
    perception: Perception


@dataclass(frozen=True, eq=False)
class _Active:
    """Everything that exists between `activate` and `deactivate`."""

    workers: Workers
    subscriptions: tuple[Subscription, ...]


class Recon4DNode(LifecycleNode):
    """Streams images through a reconstruction; see the package's README for topics."""

    def __init__(
        self,
        name: str = "recon4d_node",
        build_core: Callable[[Config], Core] = build_reconstructor,
        **options: Any,
    ) -> None:
        """Declare the parameters; with `autostart` the rest follows once the node is spun.

        Args:
            name: of the node.
            build_core: makes the reconstruction of a configuration.
            options: of `rclpy.node.Node`.
        """
        super().__init__(name, automatically_declare_parameters_from_overrides=True, **options)
        self._build_core = build_core
        self._parameters_of_node = NodeParameters(self)
        self._event_log = EventLog(self)
        self._static_tree = StaticTree()
        self._configured: _Configured | None = None
        self._active: _Active | None = None
        self._config_error = ""
        self._last_error = ""
        self._has_gap = False
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        # Not the node's clock: with use_sim_time it stands still until /clock comes.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(1.0, self._diagnose, clock=self._steady)
        if self._parameters_of_node.autostart:
            self._autostart = self.create_timer(0.0, self._start, clock=self._steady)

    # Lifecycle ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Configure and activate, once; a node that fails stays alive and unconfigured."""
        self._autostart.cancel()
        if self.state_id != State.PRIMARY_STATE_UNCONFIGURED:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    @property
    def state_id(self) -> int:
        """Present lifecycle state, a constant of lifecycle_msgs/State."""
        return int(self._state_machine.current_state[0])

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters and make the reconstruction; fails with a clear error."""
        try:
            self._configured = self._configure(self._parameters_of_node.config())
        except Recon4DError as error:
            self._config_error = str(error)
            self.get_logger().error(f"not configured: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            # rclpy turns it into the transition's error without a word.
            self.get_logger().error(traceback.format_exc())
            raise
        self._config_error = self._last_error = ""
        self._parameters_of_node.freeze(True)
        return super().on_configure(state)

    def _configure(self, config: Config) -> _Configured:
        core = self._build_core(config)
        statistics = Statistics()
        outputs = Outputs(self, config.output, PoseFrames(config.frames, self._static_tree))
        topic = self._image_topic(config)
        intake = Intake(config.input, self._note, is_rectified=is_rectified_topic(topic))
        perception = Perception(
            core,
            intake,
            outputs,
            statistics,
            self._event_log,
            lambda: int(self.get_clock().now().nanoseconds),
        )
        self._static_subscription = self.create_subscription(
            TFMessage, "/tf_static", self._receive_static, qos.TF_STATIC_LISTENER
        )
        self._services_of_node = (
            self.create_service(Trigger, "~/reset", self._serve_reset),
            self.create_service(Trigger, "~/save_map", self._serve_save_map),
        )
        self._set_diagnostics_rate(config.output.diagnostics_rate)
        return _Configured(config, intake, outputs, statistics, perception)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera."""
        assert self._configured is not None
        configured = self._configured
        config = configured.config
        workers = Workers(config, configured.perception, partial(self._drop, configured))
        self._active = _Active(workers, self._subscribe(config))
        workers.start()
        self.get_logger().info(f"listening to {self._image_topic(config)}")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; the map stays."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget everything but the parameters, which can be changed again."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop for good."""
        self._stop()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected error in a transition: back to unconfigured."""
        self.get_logger().error("unexpected error in a transition; the node is unconfigured now")
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Shut down from any state."""
        if self.state_id != State.PRIMARY_STATE_FINALIZED:
            self.trigger_shutdown()

    def _stop(self) -> None:
        """Leave the active state."""
        active, self._active = self._active, None
        if active is None or self._configured is None:
            return
        for subscription in active.subscriptions:
            self.destroy_subscription(subscription)
        active.workers.close()
        self._configured.intake.close()
        if not active.workers.join():
            self.get_logger().error("a worker did not stop")

    def _release(self) -> None:
        """Leave the configured state."""
        configured, self._configured = self._configured, None
        if configured is None:
            return
        configured.outputs.destroy()
        self.destroy_subscription(self._static_subscription)
        for service in self._services_of_node:
            self.destroy_service(service)
        self._parameters_of_node.freeze(False)

    # Input ----------------------------------------------------------------------------------

    def _image_topic(self, config: Config) -> str:
        """Full name of the image topic; a compressed one follows the remapping of `image`."""
        if config.input.transport == "raw":
            return str(self.resolve_topic_name("image"))
        name = str(self.resolve_topic_name("image/compressed"))
        if name != self.resolve_topic_name("image/compressed", only_expand=True):
            return name
        return f"{self.resolve_topic_name('image')}/compressed"

    def _subscribe(self, config: Config) -> tuple[Subscription, ...]:
        kind = Image if config.input.transport == "raw" else CompressedImage
        image = self.create_subscription(
            kind, self._image_topic(config), self._receive_image, qos.image_input(config.input)
        )
        camera_info = self.create_subscription(
            CameraInfo,
            "camera_info",
            self._receive_camera_info,
            qos.camera_info_input(config.input),
        )
        return image, camera_info

    def _receive_image(self, message: Any) -> None:
        if self._active is None or self._configured is None:
            return
        now_s = time.monotonic()
        self._configured.statistics.received(now_s)
        if self._active.workers.put(Arrival(message, now_s)) is not None:
            self._configured.statistics.dropped(DropCause.NEWER_IMAGE.value)

    def _receive_camera_info(self, message: CameraInfo) -> None:
        if self._configured is not None:
            self._configured.intake.set_camera_info(message)

    def _receive_static(self, message: TFMessage) -> None:
        for refused in self._static_tree.add(message.transforms):
            self.get_logger().warning(refused)

    # Work -----------------------------------------------------------------------------------

    def _drop(self, configured: _Configured, error: Exception) -> None:
        """Count and say what became of an image that raised an error."""
        cause, text = _cause(error)
        configured.statistics.dropped(cause.value)
        self._last_error = f"{cause.value}: {text}"
        self.get_logger().warning(f"image dropped: {text}", throttle_duration_sec=5.0)
        if cause is DropCause.INTERNAL_ERROR:
            self.get_logger().error("".join(traceback.format_exception(error)))

    def _note(self, kind: str, text: str) -> None:
        """Something about the input that is no property of a single frame."""
        stamp_ns, submap = self._status.last_stamp_ns, self._status.submap
        self._event_log.publish(NodeEvent(kind, stamp_ns, submap, text))

    @property
    def _status(self) -> Status:
        return self._configured.perception.status if self._configured else Status()

    # Services and diagnostics ---------------------------------------------------------------

    def _serve_reset(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        assert self._configured is not None
        self._configured.perception.reset("asked for by the service ~/reset")
        answer.success, answer.message = True, "the reconstruction starts anew"
        return answer

    def _serve_save_map(self, _: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        assert self._configured is not None
        folder = self._configured.config.output.save_folder
        try:
            path = self._configured.perception.save_map(folder)
            answer.success, answer.message = True, str(path)
        except Recon4DError as error:
            answer.success, answer.message = False, str(error)
        return answer

    def _set_diagnostics_rate(self, rate_hz: float) -> None:
        self._diagnostics_timer.timer_period_ns = int(1e9 / rate_hz)
        self._diagnostics_timer.reset()

    def _diagnose(self) -> None:
        report = self._report()
        self._report_gap(report)
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostics_message(report, stamp))

    def _report_gap(self, report: Report) -> None:
        """Say once that the stream broke off, and once that it goes on."""
        is_gap = report.is_stale and math.isfinite(report.silence_s)
        if is_gap == self._has_gap:
            return
        self._has_gap = is_gap
        kind = "stream_gap" if is_gap else "stream_resumed"
        self._note(kind, f"last image on {report.image_topic} {report.silence_s:.1f} s ago")

    def _report(self) -> Report:
        configured = self._configured
        figures = configured.statistics.snapshot(time.monotonic()) if configured else None
        config = configured.config if configured else Config()
        return Report(
            node=self.get_fully_qualified_name(),
            lifecycle=str(self._state_machine.current_state[1]),
            config_error=self._config_error,
            last_error=self._last_error,
            image_topic=self._image_topic(config) if self._active else "",
            stale_after_s=config.input.stale_after,
            num_refused_camera_infos=(
                configured.intake.num_refused_camera_infos if configured else 0
            ),
            figures=figures,
            status=self._status,
            newest_event=self._event_log.newest,
            labels={
                "predictor": config.predictor.name,
                "device": "cpu",
                **(configured.perception.description if configured else {}),
            },
        )


def _cause(error: Exception) -> tuple[DropCause, str]:
    if isinstance(error, DroppedImageError):
        return error.cause, str(error)
    if isinstance(error, Recon4DError):
        return DropCause.REFUSED, str(error)
    return DropCause.INTERNAL_ERROR, f"internal error: {error!r}"


def main(
    args: Sequence[str] | None = None, build_core: Callable[[Config], Core] = build_reconstructor
) -> int:
    """Run the node until SIGINT or SIGTERM; the exit code."""
    stop = StopRequest()
    ensure_transport_profile()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = Recon4DNode(build_core=build_core)
    executor = new_executor()
    executor.add_node(node)
    try:
        while rclpy.ok() and not stop.is_set:
            executor.spin_once(timeout_sec=_IDLE_S)
    finally:
        stop.ignore_more()
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
