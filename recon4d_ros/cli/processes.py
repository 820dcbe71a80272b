"""Processes that a command starts and that never outlive it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from recon4d_ros.errors import ProcessError

# What a process is told in turn, and how long it may finish what it writes before it is told more,
# then killed: an interrupt may be lost while Python still imports. ROS 2's launch does the same.
_STOPPED_BY = ((signal.SIGINT, 5.0), (signal.SIGTERM, 10.0))
_TICK_S = 0.05
_LAST_LINES = 12
# The last ROS domains whose ports Linux does not give out by itself.
_FIRST_DOMAIN, _NUM_DOMAINS = 81, 20


@dataclass(frozen=True, eq=False)
class Process:
    """One started process.

    Attributes:
        name: for messages; also the name of its log.
        popen: the process.
        log: everything it printed.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def is_alive(self) -> bool:
        """It has not ended."""
        return self.popen.poll() is None

    def failure(self, what: str) -> ProcessError:
        """An error that shows the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        end = " | ".join(line.strip() for line in lines if line.strip()) or "it printed nothing"
        return ProcessError(f"the {self.name} {what}; the end of {self.log}: {end}")


def private_graph(logs: Path) -> ProcessGroup:
    """Processes in a ROS domain of their own that nothing outside this machine hears."""
    environment = dict(os.environ) | {
        "ROS_DOMAIN_ID": str(_FIRST_DOMAIN + os.getpid() % _NUM_DOMAINS),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(logs.resolve()),
        "PYTHONUNBUFFERED": "1",
    }
    return ProcessGroup(logs, environment)


class ProcessGroup:
    """Starts processes with logs; leaving the block stops all of them."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        """Remember where logs go and what every process has in its environment."""
        self._logs = logs
        self._environment = dict(environment)
        self._processes: list[Process] = []

    def __enter__(self) -> ProcessGroup:
        """Make the folder of the logs."""
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop what still runs, the youngest first."""
        for process in reversed(self._processes):
            self._end(process)

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a process in a session of its own, so that Ctrl-C reaches this one alone.

        Raises:
            ProcessError: there is no such program.
        """
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            try:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(
                    f"cannot start the {name}: {error}; expected {command[0]} to be a program; "
                    "install the package again"
                ) from error
        process = Process(name, popen, log)
        self._processes.append(process)
        return process

    def wait_until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float,
        waiting: Process,
        alive: Sequence[Process] = (),
    ) -> None:
        """Wait for something that `waiting` is to bring about while `alive` keep running.

        Raises:
            ProcessError: the time is over, or one of `alive` has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for process in alive:
                if not process.is_alive:
                    raise process.failure(f"ended with code {process.popen.returncode}")
            if time.monotonic() > deadline_s:
                raise waiting.failure(f"did not {what} within {timeout_s:.0f} s")
            time.sleep(_TICK_S)

    def stop(self, process: Process) -> None:
        """Ask a process to end with SIGINT and see that it does so well.

        Raises:
            ProcessError: it had to be killed, or its exit code is not 0.
        """
        code = self._end(process)
        if code != 0:
            raise process.failure(f"ended with code {code} on SIGINT")

    def _end(self, process: Process) -> int:
        """SIGINT, SIGTERM, SIGKILL, until it has ended; the exit code."""
        for number, grace_s in _STOPPED_BY:
            if process.is_alive:
                process.popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.popen.wait(grace_s)
        process.popen.kill()
        return process.popen.wait()
