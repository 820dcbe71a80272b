"""What a camera adds to colours: softness, exposure, noise and compression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from recon4d_ros.synthetic.clips.dice import Dice
from recon4d_ros.synthetic.clips.settings import ClipSettings

_BLOCK = 8
_NOISE_STREAM = 1


@dataclass(frozen=True, eq=False)
class Effects:
    """How B clips of T frames are spoilt.

    Attributes:
        softness_px: (B,) standard deviation of the lens's blur.
        gain: (B, T, 3) of the channels.
        noise: (B,) standard deviation, levels of 255.
        step: (B,) quantisation of the coarsest waves of 8x8 blocks, levels of 255; 0 for none.
        shutter: (B,) frames that the shutter is open; 0 without motion blur.
    """

    softness_px: Tensor
    gain: Tensor
    noise: Tensor
    step: Tensor
    shutter: Tensor


def draw_effects(settings: ClipSettings, dice: Dice) -> Effects:
    """Effects of all clips of the dice."""
    shares = settings.effects
    return Effects(
        softness_px=dice.uniform(0.3, 0.8) * dice.chance(shares.softness),
        gain=_draw_gain(settings, dice),
        noise=dice.log_uniform(0.5, 6.0) * dice.chance(shares.noise),
        step=dice.log_uniform(4.0, 24.0) * dice.chance(shares.compression),
        shutter=dice.uniform(0.3, 0.9) * dice.chance(shares.motion_blur),
    )


def _draw_gain(settings: ClipSettings, dice: Dice) -> Tensor:
    """(B, T, 3): a constant and a slow drift of brightness and of the channels' balance."""
    level, drift = dice.uniform(-0.15, 0.15, 1, 1), dice.uniform(-0.2, 0.2, 1, 1)
    balance, change = dice.uniform(-0.08, 0.08, 1, 3), dice.uniform(-0.06, 0.06, 1, 3)
    steps, device = settings.num_frames, level.device
    t = torch.linspace(0.0, 1.0, steps, dtype=torch.float64, device=device)[:, None]
    bow = (math.pi * t).sin() * dice.uniform(-0.08, 0.08, 1, 1)
    total = level + drift * t + bow + balance + change * t
    gain: Tensor = (total * dice.chance(settings.effects.exposure, 1, 1)).exp()
    return gain


def expose(colours: Tensor, effects: Effects, dice: Dice) -> Tensor:
    """Pictures (B, T, H, W, 3) uint8 of colours (B, T, 3, H, W) float32."""
    soft = _soften(colours, effects.softness_px)
    levels = 255.0 * soft * effects.gain[..., None, None].float()
    if bool((effects.noise > 0).any()):
        noise = dice.normal(_NOISE_STREAM, *levels.shape[1:])
        levels = levels.addcmul_(noise, effects.noise.float()[:, None, None, None, None])
    levels = levels.clamp_(0.0, 255.0)
    compressed = (effects.step > 0).nonzero().squeeze(-1)
    if len(compressed):
        levels[compressed] = _compress(levels[compressed], effects.step[compressed])
    return levels.round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()


def _soften(colours: Tensor, sigma_px: Tensor) -> Tensor:
    """Gaussian blur of (B, T, 3, H, W) with three taps along each axis."""
    if not bool((sigma_px > 0).any()):
        return colours
    side = torch.where(sigma_px > 0, (-0.5 / sigma_px.square()).exp(), 0.0)
    share = (side / (1.0 + 2.0 * side)).float()[:, None, None, None, None]
    return _spread(_spread(colours, share, -1), share, -2)


def _spread(colours: Tensor, share: Tensor, axis: int) -> Tensor:
    """Give a share of each pixel to both neighbours along an axis; borders keep theirs."""
    last = colours.shape[axis] - 1
    step = share * (colours.narrow(axis, 1, last) - colours.narrow(axis, 0, last))
    spread = colours.clone()
    spread.narrow(axis, 0, last).add_(step)
    spread.narrow(axis, 1, last).sub_(step)
    return spread


def _compress(levels: Tensor, step: Tensor) -> Tensor:
    """Round the cosine waves of 8x8 blocks of (B, T, 3, H, W), the finer the more coarsely."""
    height, width = levels.shape[-2:]
    margin = (0, -width % _BLOCK, 0, -height % _BLOCK)
    whole = functional.pad(levels.flatten(0, 2), margin, mode="replicate")
    rows, columns = whole.shape[1] // _BLOCK, whole.shape[2] // _BLOCK
    blocks = whole.view(-1, rows, _BLOCK, columns, _BLOCK).transpose(2, 3)
    waves = _cosines(levels.device)
    rank = torch.arange(_BLOCK, device=levels.device)
    coarse = 1.0 + 0.6 * (rank[:, None] + rank)
    each = step.float().repeat_interleave(len(whole) // len(step))[:, None, None, None, None]
    quantum = each * coarse
    # Twice along the last axis with a transposition between: one plain matrix product each.
    coded = ((blocks @ waves.mT).mT @ waves.mT / quantum).round() * quantum
    decoded = ((coded @ waves).mT @ waves).transpose(2, 3)
    picture = decoded.reshape(whole.shape)[:, :height, :width]
    return picture.reshape(levels.shape)


def _cosines(device: torch.device) -> Tensor:
    """Orthonormal cosine transform (8, 8), waves first."""
    n = torch.arange(_BLOCK, dtype=torch.float64, device=device)
    waves = (math.pi / _BLOCK * (n + 0.5) * n[:, None]).cos() * math.sqrt(2.0 / _BLOCK)
    waves[0] *= math.sqrt(0.5)
    return waves.float()
