"""What is seen beside moving things, on images whose two layers move by known steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from flow_scene import SIZE, FlowScene, ellipse, smooth_noise

from recon4d_ros.config import Config
from recon4d_ros.datatypes import FlowField, Frame
from recon4d_ros.motion.fusion import Votes
from recon4d_ros.motion.segmentation import Segmenter
from recon4d_ros.motion.uncovered import coarse_image, mean_around, resting_behind

SCALE = 320 / 512
AXES, CENTRE = (40, 30), (160, 90)
THING = ellipse(CENTRE, AXES)
RING = ellipse(CENTRE, (54, 44)) & ~ellipse(CENTRE, (30, 20))
# Steps to the partner, px; even, so that the coarse images move by whole pixels, too.
BEHIND_STEP, THING_STEP = (-4, 2), (24, 0)


def texture(seed: int) -> np.ndarray:
    layers = [smooth_noise(seed + channel, 2.0) for channel in range(3)]
    return np.clip(128 + 40 * np.stack(layers, -1), 0, 255).astype(np.uint8)


def moved(image: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    return np.roll(image, step[::-1], axis=(0, 1))


def painted(
    thing: np.ndarray, step: tuple[int, int], behind_step: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """A thing before a background, both after a step, px."""
    surface, behind = moved(texture(5), step), moved(texture(0), behind_step)
    return np.where(moved(thing, step)[..., None], surface, behind)


def picture(steps: int) -> np.ndarray:
    """The scene after so many steps."""
    behind, there = (tuple(steps * part for part in step) for step in (BEHIND_STEP, THING_STEP))
    return painted(THING, there, behind)


def votes() -> Votes:
    belief = np.where(THING, np.float32(5), np.float32(-3))
    belief = np.where(RING, np.float32(0.5), belief)
    return Votes(belief, np.ones_like(belief), ~RING, np.zeros_like(belief))


def flow_to(steps: int, moving: np.ndarray = THING, valid: np.ndarray = ~RING) -> FlowField:
    flow = np.where(moving[..., None], THING_STEP, BEHIND_STEP) * steps
    there = torch.from_numpy(flow.astype(np.float32))
    return FlowField(10, 10 + steps, there, torch.from_numpy(valid))


def told(*steps: int, before: Votes | None = None) -> Votes:
    partners = [(flow_to(step), coarse_image(picture(step), SIZE)) for step in steps]
    here = coarse_image(picture(0), SIZE)
    return resting_behind(before or votes(), here, partners, SCALE)


def rests(after: Votes) -> np.ndarray:
    return after.decided & (after.belief < 0) & RING


def test_what_lies_behind_rests_and_the_thing_does_not():
    found = rests(told(-1, 1))
    assert found[RING & ~THING].mean() > 0.8
    assert found[RING & THING].mean() < 0.05


def test_the_thing_is_shown_nowhere_at_rest():
    after = told(-1, 1)
    assert (after.unrest[RING & THING] == 1).mean() > 0.8
    assert not after.unrest[~RING | rests(after)].any()
    assert not after.decided[after.unrest > 0].any()


def test_both_sides_are_heard():
    after = told(-1, before=told(1))
    assert (after.unrest[RING & THING & ~after.decided] == 2).mean() > 0.8


def test_a_partner_tells_only_what_it_shows():
    """The one to which the thing comes hides one half of what lies beside it."""
    found = rests(told(1))
    ahead = np.zeros(SIZE, bool)
    ahead[:, CENTRE[0] :] = True
    # Where the thing will be, less the step of what lies behind it.
    hidden = moved(THING, (THING_STEP[0] - BEHIND_STEP[0], -BEHIND_STEP[1])) & RING & ~THING
    assert found[hidden].mean() < 0.1
    assert found[RING & ~THING & ~ahead].mean() > 0.8


def test_a_thing_that_looks_like_what_is_behind_it_is_not_called_resting():
    grey = np.full((*SIZE, 3), 128, np.uint8)
    plain = resting_behind(
        votes(), coarse_image(grey, SIZE), [(flow_to(1), coarse_image(grey, SIZE))], SCALE
    )
    assert not rests(plain)[RING & THING].any()


def test_what_is_decided_stays():
    after = told(-1, 1)
    decided = votes().decided
    assert np.array_equal(after.belief[decided], votes().belief[decided])
    assert np.array_equal(after.evidence, votes().evidence)


def test_what_is_called_moving_and_clearly_seen_at_rest_is_disbelieved():
    """Flow has laid the thing's motion over what lies around it, and passed its check."""
    wide, everywhere = THING | RING, np.ones(SIZE, bool)
    belief = np.where(wide, np.float32(5), np.float32(-3))
    before = replace(votes(), belief=belief, decided=everywhere)
    here = coarse_image(picture(0), SIZE)
    partners = [
        (flow_to(step, wide, everywhere), coarse_image(picture(step), SIZE)) for step in (-1, 1)
    ]
    after = resting_behind(before, here, partners, SCALE)
    lost = before.belief - after.belief
    assert (lost[RING & ~THING] == 5).mean() > 0.8
    assert (lost[THING] == 0).mean() > 0.95
    assert not lost[before.belief < 0].any()
    assert np.array_equal(after.decided, before.decided) and not after.unrest.any()


def test_only_the_surroundings_of_moving_things_are_asked():
    hole = np.zeros(SIZE, bool)
    hole[5:15, 5:25] = True
    before = votes()
    before = replace(before, decided=before.decided & ~hole)
    assert not told(-1, 1, before=before).decided[hole].any()
    nothing_moves = replace(before, belief=np.minimum(before.belief, 1))
    assert told(-1, 1, before=nothing_moves) is nothing_moves


def test_nothing_is_told_where_the_partner_does_not_look():
    away = flow_to(1)
    away = replace(away, flow=away.flow + 400.0)
    image = coarse_image(picture(0), SIZE)
    assert not rests(resting_behind(votes(), image, [(away, image)], SCALE)).any()


def test_mean_around_is_the_mean_of_the_counted_pixels():
    """Of the least square that holds some; what is not counted has no part in it."""
    counted = np.zeros((60, 80), bool)
    counted[:, :20] = True
    flow = np.where(counted[..., None], np.float32([3, -1]), np.float32(99))
    mean, known = mean_around(flow, counted, SCALE)
    assert known[:, :50].all()
    assert np.allclose(mean[:, :50], [3, -1], atol=1e-4)
    _, none = mean_around(flow, np.zeros_like(counted), SCALE)
    assert not none.any()


def test_the_segmenter_tells_what_later_frames_uncover():
    """With images of all frames the smear around the thing goes, without them it stays."""
    scene = FlowScene(object_motion=(0.16, 0, 0), noise_px=0.02)
    smeared = ellipse((200, 90), (56, 64)) & ~ellipse((200, 90), (30, 40))
    pictures = {
        index: Frame(index, index, torch.from_numpy(segmented_picture(scene, index - 10)))
        for index in (4, 7, 10)
    }
    arrival = scene.arrival(10, offsets=(3, 6))
    unseen = torch.from_numpy(~smeared)
    arrival.flows = tuple(replace(flow, valid=flow.valid & unseen) for flow in arrival.flows)
    masks = []
    for indices in ((4, 7), ()):
        segmenter = Segmenter(Config().motion)
        for index in indices:
            segmenter.segment_frame(scene.arrival(index, offsets=()), pictures[index])
        masks.append(segmenter.segment_frame(arrival, pictures[10]).decided[0].numpy())
    behind = smeared & ~scene.moving
    assert masks[0][behind].mean() > masks[1][behind].mean() + 0.4


def segmented_picture(scene: FlowScene, steps: int) -> np.ndarray:
    """A camera that stands; the thing steps by its own flow."""
    step = scene.flow(10, 10 + steps).flow.numpy()[scene.moving].mean(axis=0) if steps else (0, 0)
    return painted(scene.moving, (round(float(step[0])), round(float(step[1]))))
