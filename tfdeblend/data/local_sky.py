"""The sky of a large image, from the pixels around each place alone.

In each mesh of MESH x MESH pixels, counted from the image's first pixel, the sky is the clipped mean of the pixels
where nothing stands out. The median of 3 x 3 meshes leaves out those that a halo fills, and between their centres the
sky is linear. So two cut-outs of one image, whose first pixels are whole meshes apart, have the same sky wherever both
show REACH pixels around, or the image's edge. A mesh that light fills has the sky of the nearest that it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt

from tfdeblend.data.noise_correlation import convolved
from tfdeblend.data.sky import GROWN, detection_image, levels, noise_seen, psf_kernel
from tfdeblend.data.sky import empty as empty_of_small

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation

MESH = 64  # pixels
# A pixel needs the mesh beside its own, for its median the next, and to tell what stands out there two more.
REACH = 4 * MESH
LARGE = 3 * MESH  # pixels: an image's side from which its sky may drift
STANDS_OUT = 3.0  # sigma of the detection image through the PSF's filter
CLIP, ROUNDS = 3.0, 10  # sigma
BELOW = 0.1587  # of a Gaussian's values are 1 sigma below its median, or more
LEAST = 0.25  # of a mesh: pixels that tell its level


def less_sky(observation: Observation) -> Observation:
    """Subtract the local sky from an image that is large enough to have one, else the level of its sky if certain."""
    if min(observation.shape[1:]) >= LARGE:
        return observation.derived(images=observation.images - local_sky(observation), flat=True)
    clear = empty_of_small(observation)
    sigma = noise_seen(observation)
    certain = [level.value if level and level.certain else 0.0 for level in levels(observation, clear, sigma)]
    return observation.less(sigma * certain) if any(certain) else observation


def local_sky(observation: Observation) -> np.ndarray:
    """Measure (C,H,W) the sky of each band; 0 in a band that is all masked."""
    images, valid = observation.images.astype(float), observation.valid
    rough = [_mesh_levels(image, seen, 0.0) for image, seen in zip(images, valid, strict=True)]
    drift = np.stack([_interpolated(level, images.shape[1:]) for level in rough])
    clear = _clear(observation, images - drift)
    levels = [_mesh_levels(*each) for each in zip(images, valid & clear, rough, strict=True)]
    return np.stack([_interpolated(_median_of_nine(level), images.shape[1:]) for level in levels])


def _clear(observation: Observation, images: np.ndarray) -> np.ndarray:
    """(H,W) bool: pixels away from what stands out of the noise of its mesh; what does grows by a PSF's width."""
    image, sigma = detection_image(images, observation.weights)
    kernel = psf_kernel(observation.psf)
    filtered = convolved(image, kernel)
    level, scatter, _ = _clipped(_meshes(filtered, np.isfinite(sigma)))
    limit = np.kron(level + STANDS_OUT * scatter, np.ones((MESH, MESH)))
    bright = filtered > limit[: image.shape[0], : image.shape[1]]
    return convolved(bright.astype(float), kernel) < GROWN * kernel.max()


def _mesh_levels(image: np.ndarray, seen: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """(m,n): the level of each mesh, or that of the nearest one where too few pixels are seen.

    otherwise: where none has enough.
    """
    level, _, count = _clipped(_meshes(image, seen))
    few = count < LEAST * np.prod(np.minimum(image.shape, MESH))
    if few.all():
        return np.broadcast_to(otherwise, level.shape)
    return level[tuple(distance_transform_edt(few, return_distances=False, return_indices=True))]


def _meshes(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(m,n,MESH^2): the pixels of each mesh, NaN where they are not seen or beyond the image."""
    height, width = image.shape
    beyond = (0, -height % MESH), (0, -width % MESH)
    padded = np.pad(np.where(seen, image, np.nan), beyond, constant_values=np.nan)
    parts = padded.reshape(len(padded) // MESH, MESH, -1, MESH).swapaxes(1, 2)
    return parts.reshape(*parts.shape[:2], -1)


def _clipped(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure (m,n) the mean of pixels (m,n,P), clipped against light, their scatter, and how many there are.

    The scatter is that below the median, which light hardly widens. NaN pixels do not count; of none the mean is 0.
    """
    values = np.sort(pixels, 2)  # NaN last
    number = count = np.isfinite(values).sum(2)
    for _ in range(ROUNDS):
        median, low = (_ranked(values, count, share) for share in (0.5, BELOW))
        scatter = np.nan_to_num(median - low)
        count = (values <= (median + CLIP * scatter)[..., None]).sum(2)
    near = np.abs(values - median[..., None]) <= CLIP * scatter[..., None]
    return np.where(near, values, 0).sum(2) / np.maximum(near.sum(2), 1), scatter, number


def _ranked(values: np.ndarray, count: np.ndarray, share: float) -> np.ndarray:
    """(m,n): the value that such a share of the first `count` of sorted values does not reach."""
    rank = (share * np.maximum(count - 1, 0)).astype(int)
    return np.take_along_axis(values, rank[..., None], 2)[..., 0]


def _median_of_nine(level: np.ndarray) -> np.ndarray:
    """(m,n): the median of a mesh and those around it."""
    return np.median(np.lib.stride_tricks.sliding_window_view(_beyond(level), (3, 3)), (2, 3))


def _interpolated(level: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H,W): linear between the centres of the meshes."""
    rows, columns = (_hats(size, count) for size, count in zip(shape, level.shape, strict=True))
    return rows @ _beyond(level) @ columns.T


def _hats(size: int, count: int) -> np.ndarray:
    """(size, count + 2): how much each pixel of a line takes from its meshes and the one beyond either end."""
    edges = np.minimum(np.arange(count + 1) * MESH, size)
    centres = _beyond((edges[:-1] + edges[1:] - 1) / 2)
    return np.stack([np.interp(np.arange(size), centres, one) for one in np.eye(count + 2)], 1)


def _beyond(values: np.ndarray) -> np.ndarray:
    """The values of meshes with those beyond either end, as a plane goes on."""
    return np.pad(values, 1, mode="reflect", reflect_type="odd")
