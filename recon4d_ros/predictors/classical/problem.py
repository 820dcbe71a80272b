"""What a bundle adjustment is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from recon4d_ros.predictors.classical import rigid
from recon4d_ros.predictors.classical.rigid import Array
from recon4d_ros.predictors.classical.shutter import ReadoutTime
from recon4d_ros.predictors.classical.tracks import Index, Mask

# Weight of the prior on an inverse depth that is not known yet, over the prior's square. It bears
# points without parallax. A wider guess than depths really scatter: over a short baseline images
# tell near from far by little, and hundreds of priors would pull both to the middle.
PRIOR_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class Readout:
    """How observations depend on the time the camera takes to read an image.

    Attributes:
        sweep: (P, F, 2) displacement of each observation per second of readout, normalised image
            coordinates; anything where not seen.
        host_sweep: (P, 2) the same of the points in their hosts.
        expected: the readout time so far, start and prior.
    """

    sweep: Array
    host_sweep: Array
    expected: ReadoutTime


@dataclass(frozen=True, eq=False)
class Problem:
    """P points seen in F frames.

    Attributes:
        T_cam_world: (F, 4, 4) poses of the frames.
        free: (F,) bool, which poses may move.
        host: (P,) row of each point's host frame.
        ray: (P, 2) normalised image coordinates of the point in its host.
        rho: (P,) inverse depth in the host.
        uv: (P, F, 2) observations, normalised image coordinates; NaN where not seen.
        rho_prior: (P,) expected inverse depth.
        rho_prior_weight: (P,) inverse variance of that, 0 for none.
        focal_px: px per unit of normalised coordinates, so that residuals are in px.
        focal_sigma: relative standard deviation of that; 0 if it is known.
        sigma_px: scale of the robust (Cauchy) kernel.
        readout: what the rows' different times do to the observations.
    """

    T_cam_world: Array
    free: Mask
    host: Index
    ray: Array
    rho: Array
    uv: Array
    rho_prior: Array
    rho_prior_weight: Array
    focal_px: float
    focal_sigma: float
    sigma_px: float
    readout: Readout


@dataclass(frozen=True, eq=False)
class Solution:
    """Best state found.

    Attributes:
        T_cam_world: (F, 4, 4).
        rho: (P,).
        rho_sigma: (P,) standard deviation of rho, poses taken as known.
        residual_px: (P, F) length of the reprojection error, NaN where not seen.
        readout_s: time to read an image.
        readout_sigma_s: standard deviation of that, poses and depths taken as unknown.
        focal_px, focal_sigma: likewise, the latter relative; what was given if it was known.
        rho_by_focal: (P,) how rho follows the log of the focal length; 0 if that was known.
        cost: robust cost.
        iterations: taken.
    """

    T_cam_world: Array
    rho: Array
    rho_sigma: Array
    residual_px: Array
    readout_s: float
    readout_sigma_s: float
    focal_px: float
    focal_sigma: float
    rho_by_focal: Array
    cost: float
    iterations: int

    def scaled(self, factor: float) -> Solution:
        """The same with all lengths times `factor`, about the first frame's camera."""
        base = self.T_cam_world[0]
        T = self.T_cam_world @ rigid.inverse(base)
        T[:, :3, 3] *= factor
        return replace(
            self,
            T_cam_world=T @ base,
            rho=self.rho / factor,
            rho_sigma=self.rho_sigma / factor,
            rho_by_focal=self.rho_by_focal / factor,
        )
