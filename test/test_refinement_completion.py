"""Borrowed depth of moving pixels."""

import torch
from analytic_scene import intrinsics
from hypothesis import given, settings
from hypothesis import strategies as st

from recon4d_ros.datatypes import Frame, IntrinsicsSource, Reconstruction, TrackingState
from recon4d_ros.refinement.completion import BORROWED_CONFIDENCE, borrow_depth, complete

SIZE = (24, 32)


def box(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


MOVING = box(slice(8, 16), slice(10, 20))


def reconstruction(depth: torch.Tensor, moving: torch.Tensor) -> Reconstruction:
    return Reconstruction(
        frame=Frame(0, 1, torch.zeros(*SIZE, 3, dtype=torch.uint8)),
        is_final=True,
        T_map_cam=torch.eye(4, dtype=torch.float64),
        depth=depth,
        confidence=torch.where(depth.isfinite(), 7.0, 0.0),
        dynamic_mask=moving,
        filled=torch.zeros(SIZE, dtype=torch.bool),
        intrinsics=intrinsics(*SIZE),
        intrinsics_source=IntrinsicsSource.GIVEN,
        state=TrackingState.TRACKING,
        submap=0,
        scale_known=False,
        residual_px=0.1,
        num_support=100,
    )


@given(st.floats(0.1, 100.0))
@settings(max_examples=20, deadline=None)
def test_a_constant_surrounding_is_borrowed_exactly(value):
    depth = torch.where(MOVING, 55.0, value)
    filled_depth, filled = borrow_depth(depth, MOVING)
    assert torch.allclose(filled_depth, torch.full(SIZE, value), rtol=1e-5)
    assert torch.equal(filled, MOVING)


def test_known_pixels_stay_and_unknown_ones_stay_unknown():
    depth = 1.0 + torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    hole = box(slice(0, 4), slice(0, 4))
    depth[hole] = torch.nan
    filled_depth, filled = borrow_depth(depth, MOVING)
    kept = ~MOVING & ~hole
    assert torch.equal(filled_depth[kept], depth[kept])
    assert bool(filled_depth[hole].isnan().all())
    borrowed = filled_depth[MOVING]
    assert float(borrowed.min()) >= 1.0 and float(borrowed.max()) <= 2.0
    assert torch.equal(filled, MOVING)


def test_the_nearer_surrounding_weighs_more():
    depth = torch.ones(SIZE)
    depth[:, 16:] = 3.0
    filled_depth, _ = borrow_depth(depth, box(slice(8, 16), slice(6, 28)))
    assert float(filled_depth[12, 7]) < 1.5
    assert float(filled_depth[12, 26]) > 2.0


def test_nothing_to_borrow_from_fills_nothing():
    everything = torch.ones(SIZE, dtype=torch.bool)
    for depth, moving in ((torch.ones(SIZE), everything), (torch.full(SIZE, torch.nan), MOVING)):
        filled_depth, filled = borrow_depth(depth, moving)
        assert not bool(filled.any())
        assert bool(filled_depth[moving].isnan().all())
    depth, filled = borrow_depth(torch.ones(SIZE), ~everything)
    assert torch.equal(depth, torch.ones(SIZE)) and not bool(filled.any())


def test_borrowed_depth_is_flagged_and_least_confident():
    depth = torch.full(SIZE, 2.0)
    depth[0, :5] = torch.nan
    done = complete(reconstruction(depth, MOVING))
    assert torch.equal(done.filled, MOVING)
    assert bool((done.confidence[MOVING] == BORROWED_CONFIDENCE).all())
    measured = ~MOVING & done.depth.isfinite()
    assert bool((done.confidence[measured] == 7.0).all())
    assert torch.equal(done.confidence > 0, done.depth.isfinite())


def test_a_predictors_own_borrowing_stays_flagged():
    before = reconstruction(torch.full(SIZE, 2.0), MOVING)
    own = box(slice(0, 2), slice(0, 2))
    before.filled[own] = True
    assert torch.equal(complete(before).filled, MOVING | own)
