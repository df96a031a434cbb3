"""Simulated particle images with their truth, and stacks brought into their true poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import check_random_state

from sklearn_cryoem._core.files import atomic_path, check_room, try_to_write
from sklearn_cryoem._core.parallel import ordered_map, row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem._core.validation import check_choice, check_number, notify
from sklearn_cryoem.datasets.draws import NOISE_KINDS, draw_truth
from sklearn_cryoem.datasets.forward import PIXELS_A_BLOCK, ForwardModel, draw_ctf
from sklearn_cryoem.datasets.volumes import PHANTOMS, Volume, squared_radius
from sklearn_cryoem.particles import ParticleStack, Poses
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc, write_mrc_blocks
from sklearn_cryoem.physics.fourier import Float32

_OWNER = "make_particles"


def make_particles(
    volume: str | Volume | Sequence[str | Volume] = "ribosome",
    n_samples: int = 1000,
    *,
    box: int = 64,
    pixel_size: float | None = None,
    snr: float | None = 0.1,
    n_views: int | None = None,
    in_plane: bool = True,
    max_shift: float = 0.0,
    defocus: tuple[float, float] | None = (10000.0, 25000.0),
    astigmatism: float = 500.0,
    voltage_volts: float = 300e3,
    cs_angstrom: float = 2.7e7,
    amplitude_contrast: float = 0.1,
    b_factor_angstrom2: float = 0.0,
    noise: Literal["white", "coloured"] = "white",
    junk_fraction: float = 0.0,
    weights: Sequence[float] | None = None,
    path: str | Path | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    overwrite: bool = False,
    n_jobs: int | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> ParticleStack:
    """Simulate cryo-EM particle images and return them with their CTF and the truth.

    image = CTF * (projection of the volume, turned and shifted) + noise. The projection is an exact central
    slice of the volume's Fourier transform; the CTF, astigmatism included, is that of the image's own frame,
    with RELION's sign, Eq. (1.4)-(1.5), so that particles are white on black. Noise has mean 0 and standard
    deviation 1, as RELION wants the background of its particles. As in every simulator that works in Fourier
    space, what reaches beyond the box (fringes of the CTF, a large `max_shift`) wraps round.

    Parameters
    ----------
    volume : str, Volume or sequence of these
        What is imaged. A name ("ribosome", "ring-10", "ring-11", "ring-12", "rp", "rp-cp") or a `Volume`,
        such as `load_volume` returns; several make a heterogeneous set.
    n_samples : int
        Number of images.
    box : int
        Side of the images in pixels.
    pixel_size : float, optional
        In Angstrom. By default that of the first `Volume`; for named phantoms, whatever fits them in the box.
    snr : float, optional
        Variance of the CTF-filtered signal over the whole box, averaged over particles, divided by the
        variance of the noise in a pixel. None leaves the noise out and gives the signal variance 1.
    n_views : int, optional
        Number of fixed view directions, quasi-uniform on the sphere, of which each particle shows one. By
        default every particle has a view direction of its own.
    in_plane : bool
        Whether particles are turned in the plane at random.
    max_shift : float
        Particles are off centre by at most this, in Angstrom, uniformly in a disc.
    defocus : (float, float), optional
        Range of the mean defocus in Angstrom, positive is underfocus. None simulates without a CTF.
    astigmatism : float
        Largest difference of defocus U and V in Angstrom; uniform from 0, at a random angle.
    voltage_volts, cs_angstrom, amplitude_contrast, b_factor_angstrom2 : float
        The same for all particles; B-factor of the envelope exp(-B s^2 / 4).
    noise : {"white", "coloured"}
        Spectrum of the noise; the coloured one is proportional to 0.5 + 3 exp(-f / 0.06), with f in cycles a
        pixel.
    junk_fraction : float
        Probability that an image is junk: as often only noise, blobs of ice, a carbon edge, or a particle
        far off centre. Ice and edges are normalised by their own background.
    weights : sequence of float, optional
        Probabilities of the volumes; equal by default.
    path : str or Path, optional
        Write the images to this .mrcs file, block by block, and return a stack that reads them from there:
        memory use does not grow with `n_samples`.
    dtype : {"float32", "float16"}
        Type of the pixels in the file.
    overwrite : bool
        Whether an existing file at `path` is replaced.
    n_jobs : int, optional
        Number of workers (threads). The images are the same bits for any number.
    random_state : int, RandomState instance or None
        Seed of everything drawn.
    verbose : int
        1 shows a progress bar.

    Returns
    -------
    stack : ParticleStack
        Without poses (see `aligned_to_truth`). Its ``truth`` has the columns ``view_x, view_y, view_z`` (unit
        view direction), ``view`` (index of the fixed view, -1 without), ``rot_rad, tilt_rad`` (the same
        direction in RELION's angles), ``angle_rad`` (in-plane psi), ``shift_x, shift_y`` (RELION's origin,
        Angstrom), ``structure`` (index of the volume), ``is_junk`` and ``junk_kind``. Of junk without a
        particle the direction is NaN and the indices are -1.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    FileExistsError
        If `path` exists and `overwrite` is false.

    Notes
    -----
    About 4 million Fourier coefficients a second and core: 10,000 images of 128 pixels are 64 million.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import make_particles
    >>> stack = make_particles("ribosome", n_samples=20, box=32, snr=0.1, random_state=0)
    >>> stack.shape, list(stack.truth.columns[:3])
    ((20, 32, 32), ['view_x', 'view_y', 'view_z'])
    """
    check_choice("noise", noise, NOISE_KINDS, owner=_OWNER)
    check_choice("dtype", dtype, ("float32", "float16"), owner=_OWNER)
    check_simulation(locals(), _RANGES, owner=_OWNER)
    volumes, pixel_size = resolve_volumes(volume, box, pixel_size)
    probabilities = _probabilities(weights, len(volumes))
    entropy = check_random_state(random_state).randint(2**32, size=4, dtype=np.uint32)
    truth_seed, ctf_seed, image_seed = np.random.SeedSequence(entropy.tolist()).spawn(3)
    truth = draw_truth(
        n_samples,
        np.random.default_rng(truth_seed),
        n_views=n_views,
        in_plane=in_plane,
        max_shift=max_shift,
        side=box * pixel_size,
        weights=probabilities,
        junk_fraction=junk_fraction,
    )
    ctf = draw_ctf(
        n_samples,
        np.random.default_rng(ctf_seed),
        defocus=defocus,
        astigmatism=astigmatism,
        voltage_volts=voltage_volts,
        cs_angstrom=cs_angstrom,
        amplitude_contrast=amplitude_contrast,
        b_factor_angstrom2=b_factor_angstrom2,
    )
    kind = None if snr is None else noise
    model = ForwardModel(volumes, box, pixel_size, truth, ctf, kind).scaled_to(snr)
    source = make_images(
        model, image_seed, path=path, dtype=dtype, overwrite=overwrite, n_jobs=n_jobs, verbose=verbose
    )
    return ParticleStack(source, pixel_size=pixel_size, ctf=ctf, truth=truth)


def true_poses(stack: ParticleStack) -> Poses:
    """In-plane angles and shifts that the particles of a simulated stack were made with.

    Raises
    ------
    ValueError
        If the stack carries no truth.
    """
    if stack.truth is None:
        raise ValueError(
            "The stack carries no truth, so its true poses are unknown. Use a stack from make_particles, or "
            "align it with MAPAligner."
        )
    truth = stack.truth
    return Poses(truth["angle_rad"].to_numpy(), truth[["shift_x", "shift_y"]].to_numpy())


def aligned_to_truth(stack: ParticleStack) -> ParticleStack:
    """Return the stack with its true poses: as if a perfect aligner had seen it.

    The images are not touched; whoever reads features from the stack undoes shift and rotation, Eq. (2.1),
    and turns the CTF with them, Eq. (1.6).

    Parameters
    ----------
    stack : ParticleStack
        From `make_particles`, or any rows of one.

    Returns
    -------
    aligned : ParticleStack

    Raises
    ------
    ValueError
        If the stack carries no truth.
    """
    return stack.with_poses(true_poses(stack))


def make_images(
    model: ForwardModel,
    seed: np.random.SeedSequence,
    *,
    path: str | Path | None,
    dtype: str,
    overwrite: bool,
    n_jobs: int | None,
    verbose: int,
) -> Any:
    """Render all images of a model, into an array or a file, in blocks that do not depend on `n_jobs`."""
    n_samples, box = len(model.truth), model.box
    blocks = row_blocks(n_samples, max(1, PIXELS_A_BLOCK // box**2))
    tasks = list(zip(blocks, seed.spawn(len(blocks)), strict=True))
    shape = (n_samples, box, box)
    with progress(n_samples, "simulate", verbose=verbose) as bar:
        images = _counted(ordered_map(model.render, tasks, n_jobs=n_jobs), bar)
        if path is None:
            array = np.empty(shape, dtype=np.float32)
            for rows, block in zip(blocks, images, strict=True):
                array[rows] = block
            return array
        with atomic_path(path, overwrite=overwrite) as unfinished:  # the file appears only when it is whole
            write_mrc_blocks(
                unfinished, images, shape, pixel_size=model.pixel_size, is_stack=True, dtype=dtype
            )
    rows = np.arange(n_samples, dtype=np.int32)
    return FileSource([inspect_mrc(path)], np.zeros_like(rows), rows)


def _counted(images: Iterator[Float32], bar: Any) -> Iterator[Float32]:
    """Pass blocks on and count their images on a progress bar."""
    for block in images:
        yield block
        bar.update(len(block))


_POSITIVE = {"minimum": 0.0, "inclusive": False}
COMMON_RANGES: dict[str, dict[str, Any]] = {
    "n_samples": {"minimum": 1, "integer": True},
    "box": {"minimum": 8, "integer": True},
    "pixel_size": {**_POSITIVE, "allow_none": True},
    "junk_fraction": {"minimum": 0.0, "maximum": 1.0},
}
_RANGES: dict[str, dict[str, Any]] = {
    **COMMON_RANGES,
    "snr": {**_POSITIVE, "allow_none": True},
    "n_views": {"minimum": 1, "integer": True, "allow_none": True},
    "max_shift": {"minimum": 0.0},
    "astigmatism": {"minimum": 0.0},
    "voltage_volts": {"minimum": 1e4},
    "cs_angstrom": {"minimum": 0.0},
    "amplitude_contrast": {"minimum": 0.0, "maximum": 1.0},
    "b_factor_angstrom2": {"minimum": 0.0},
}


def check_simulation(given: dict[str, Any], ranges: dict[str, dict[str, Any]], *, owner: str) -> None:
    """Refuse numbers out of range, a range of defocus that is none, and a file that cannot be written."""
    for name, limits in ranges.items():
        check_number(name, given[name], owner=owner, **limits)
    defocus, path = given["defocus"], given["path"]
    if defocus is not None and (np.shape(defocus) != (2,) or not defocus[0] <= defocus[1]):
        raise ValueError(
            f"The parameter 'defocus' of {owner} must be None or (lowest, highest) in Angstrom. "
            f"Got {defocus!r} instead."
        )
    if path is not None and Path(path).suffix not in (".mrcs", ".mrc"):
        raise ValueError(f"The parameter 'path' of {owner} must end in .mrcs. Got {str(path)!r} instead.")
    if path is not None:
        try_to_write(path, overwrite=given["overwrite"])
        itemsize = np.dtype(given.get("dtype", "float32")).itemsize
        check_room(path, itemsize * given["n_samples"] * given["box"] ** 2)


def resolve_volumes(
    volume: str | Volume | Sequence[str | Volume], box: int, pixel_size: float | None
) -> tuple[list[Volume], float]:
    """Return the volumes, named ones built to fit the box, and the pixel size of the images."""
    asked = [volume] if isinstance(volume, str | Volume) else list(volume)
    for item in asked:
        if not isinstance(item, str | Volume):
            raise TypeError(
                f"A volume must be a name or a Volume. Got {type(item).__name__}; use load_volume(path)."
            )
        if isinstance(item, str) and item not in PHANTOMS:
            raise ValueError(
                f"There is no phantom {item!r}. Use one of {', '.join(PHANTOMS)}; "
                "for a map from a file give load_volume(path)."
            )
    if not asked:
        raise ValueError("The list of volumes is empty. Give a name or a Volume.")
    if pixel_size is None:
        given = [item.pixel_size for item in asked if isinstance(item, Volume)]
        pixel_size = given[0] if given else max(PHANTOMS[name][1] for name in asked) / box
    volumes = [PHANTOMS[item][0](box, pixel_size) if isinstance(item, str) else item for item in asked]
    for item in volumes:
        _warn_if_it_wraps(item, box * pixel_size)
    return volumes, float(pixel_size)


def _warn_if_it_wraps(volume: Volume, side: float) -> None:
    """Warn if a noticeable part of the volume lies farther out than half the image."""
    power = volume.array.astype(np.float64) ** 2
    is_outside = squared_radius(volume.box) > (0.5 * side / volume.pixel_size) ** 2
    outside = power[is_outside].sum() / max(power.sum(), np.finfo(float).tiny)
    if outside > 0.01:
        notify(
            "phantom-wraps",
            f"{100 * outside:.0f} % of the volume's power lies outside the {side:g} A of the images and "
            "wraps round. Raise box= or pixel_size=.",
        )


def _probabilities(weights: Sequence[float] | None, n_volumes: int) -> np.ndarray:
    values = np.ones(n_volumes) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (n_volumes,) or not np.isfinite(values).all() or values.min() < 0 or values.sum() == 0:
        raise ValueError(
            f"The parameter 'weights' of {_OWNER} must hold {n_volumes} numbers of at least 0, one for each "
            f"volume, not all 0. Got {weights!r} instead."
        )
    return values / values.sum()
