"""The hand-over between the receiving and the working thread."""

import threading
from dataclasses import replace
from typing import Any

from recon4d_ros.config import InputConfig
from recon4d_ros.pipeline.mailbox import DenseSchedule, Mailbox

WAIT_S = 10.0


def test_live_keeps_the_newest_and_gives_back_what_is_lost():
    mailbox = Mailbox(1, lossless=False)
    assert [mailbox.put(n) for n in range(4)] == [None, 0, 1, 2]
    assert mailbox.take(0.0) == 3
    assert mailbox.take(0.0) is None


def test_replay_loses_nothing_and_keeps_the_order():
    mailbox = Mailbox(2, lossless=True)
    lost = []
    writer = threading.Thread(target=lambda: lost.extend(mailbox.put(n) for n in range(200)))
    writer.start()
    taken = [mailbox.take(WAIT_S) for _ in range(200)]
    writer.join(WAIT_S)
    assert taken == list(range(200))
    assert lost == [None] * 200


def test_replay_waits_for_room():
    mailbox = Mailbox(1, lossless=True)
    mailbox.put("first")
    done = threading.Event()

    def put():
        mailbox.put("second")
        done.set()

    threading.Thread(target=put, daemon=True).start()
    assert not done.wait(0.05)
    assert len(mailbox) == 1
    assert mailbox.take(0.0) == "first"
    assert done.wait(WAIT_S)


def test_closing_wakes_a_writer_whose_item_is_lost():
    mailbox = Mailbox(1, lossless=True)
    mailbox.put("first")
    lost = []
    writer = threading.Thread(target=lambda: lost.append(mailbox.put("second")))
    writer.start()
    mailbox.close()
    writer.join(WAIT_S)
    assert lost == ["second"]
    assert not mailbox.is_open


def test_closing_wakes_a_reader():
    mailbox = Mailbox(1, lossless=False)
    taken = []
    reader = threading.Thread(target=lambda: taken.append(mailbox.take(10 * WAIT_S)))
    reader.start()
    mailbox.close()
    reader.join(WAIT_S)
    assert taken == [None]


def test_the_configuration_chooses_the_kind():
    live = Mailbox.of(InputConfig(mode="live", queue_size=5))
    assert [live.put(n) for n in range(2)] == [None, 0]
    replay = Mailbox.of(InputConfig(mode="replay", queue_size=5))
    assert [replay.put(n) for n in range(5)] == [None] * 5
    assert [replay.take(0.0) for _ in range(5)] == list(range(5))


def _schedule(waits_s: list[float], **changes: Any) -> list[bool]:
    schedule = DenseSchedule(replace(InputConfig(), dense_every=3, **changes))
    return [schedule.next(waited_s < 0.003) for waited_s in waits_s]


def test_a_machine_that_keeps_up_makes_every_image_dense() -> None:
    assert all(_schedule([0.0] * 6))


def test_a_slow_machine_makes_every_third_image_dense_and_tries_again() -> None:
    late, in_time = 0.02, 0.0
    assert _schedule([in_time, *[late] * 6]) == [True, False, False, True, False, False, True]
    recovered = [in_time, late, late, late, in_time, in_time]
    assert _schedule(recovered) == [True, False, False, True, True, True]


def test_a_replay_is_dense_however_long_images_wait() -> None:
    assert all(_schedule([1.0] * 4, mode="replay"))
