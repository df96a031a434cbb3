"""From metadata to a stack: find the images, check that they fit, drop or refuse what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.notices import notify
from sklearn_cryoem.io._checks import RANGES, are_unlike, check_poses, question_pixel_size
from sklearn_cryoem.io._locate import ImageFinder, split_image_name
from sklearn_cryoem.io._raw import RawParticles, RowProblems
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses
from sklearn_cryoem.particles.absent_source import AbsentSource
from sklearn_cryoem.particles.check import find_bad_images
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.geometry import UNKNOWN_PIXEL_SIZE, pixel_sizes_differ
from sklearn_cryoem.particles.mrc_files import FrameFile, inspect_mrc
from sklearn_cryoem.particles.sources import ImageSource

_SAME_PIXEL_SIZE = 1e-3  # relative


def assemble(
    raw: RawParticles,
    problems: RowProblems,
    *,
    images_dir: str | Path | None,
    pixel_size: float | None,
    check_images: bool,
    metadata_only: bool,
    verbose: int,
) -> ParticleStack:
    """Make a stack of the rows of `raw` that can be used.

    Parameters
    ----------
    raw : RawParticles
        The metadata.
    problems : RowProblems
        Collects bad rows, or raises for the first.
    images_dir, pixel_size, check_images, metadata_only, verbose
        See `read_particles`.

    Returns
    -------
    ParticleStack
        Rows that `problems` has dropped are left out.

    Raises
    ------
    ParticleDataError
        If the particles cannot be used together, or (unless permissive) one cannot be used.
    """
    if metadata_only:
        known = np.unique(raw.box[np.isfinite(raw.box)]) if raw.box is not None else []
        source: ImageSource = AbsentSource(len(raw.frame), int(known[0]) if len(known) == 1 else 0)
        header_size = None
    else:
        source, header_size = _open_images(raw, problems, images_dir)
    size = _one_pixel_size(raw, problems, pixel_size, header_size)
    if pixel_size is None and size is not None:
        _question_pixel_size(raw, size, source)
    check_poses(raw, problems, source.box, size)
    if check_images and not metadata_only:
        _check_pixels(source, problems, verbose)
    problems.check_any_left()
    return _stack(raw, np.flatnonzero(problems.keep), source, size)


def _question_pixel_size(raw: RawParticles, size: float, source: ImageSource) -> None:
    """Warn if the headers of the images give another pixel size, or it is one that hardly any images have."""
    headers = [file.pixel_size for file in source.files] if isinstance(source, FileSource) else []
    differing = pixel_sizes_differ(size, headers)
    if differing is not None:
        notify("pixel-size-differs", f"{raw.path}: {differing}", stacklevel=4)
    else:
        known = not headers or any(header not in (None, UNKNOWN_PIXEL_SIZE) for header in headers)
        question_pixel_size(raw, size, source.box, header_agrees=known)


def _open_images(
    raw: RawParticles, problems: RowProblems, images_dir: str | Path | None
) -> tuple[ImageSource, float | None]:
    """Source of all rows (bad ones point at a good image meanwhile), and the pixel size of the headers."""
    files = _inspect(raw, problems, images_dir)
    problems.check_any_left()
    n_images = np.array([0 if file is None else file.n_images for file in files])[raw.file_code]
    n_whole = np.array([0 if file is None else file.n_whole_images for file in files])[raw.file_code]
    if "rlnImageName" in raw.metadata.columns:
        names = raw.metadata["rlnImageName"].astype(str)
        unnumbered = np.array([split_image_name(name)[0] is None for name in names], dtype=bool)
        problems.add(
            unnumbered & (n_images > 1),
            lambda row: (
                f"{raw.file_names[raw.file_code[row]]} holds {n_images[row]} images, and no number says which"
            ),
            "Write its number before an @, such as 000001@stack.mrcs.",
        )
    problems.add(
        raw.frame >= n_images,
        lambda row: f"{raw.image_name(row)} does not exist, its file holds {n_images[row]} images",
        "Use the stack that belongs to this metadata (images_dir=), or extract the particles again.",
    )
    problems.add(
        raw.frame >= n_whole,
        lambda row: (
            f"{files[raw.file_code[row]].path} is truncated: its header promises {n_images[row]} images, "
            f"it holds {n_whole[row]} whole ones, and this is image {raw.frame[row] + 1}"
        ),
        "Copy or extract that stack again.",
    )
    _check_boxes(raw, problems, files)
    problems.check_any_left()
    return _source(raw, problems, files)


def _inspect(
    raw: RawParticles, problems: RowProblems, images_dir: str | Path | None
) -> list[FrameFile | None]:
    """Read the header of every file once; None for one that is missing or unsound."""
    finder = ImageFinder(raw.path, images_dir)
    files: list[FrameFile | None] = []
    wanted = np.bincount(raw.file_code[problems.keep], minlength=len(raw.file_names)) > 0
    paths = [finder.find(name) if wanted[code] else None for code, name in enumerate(raw.file_names)]
    missing = np.array([path is None for path in paths]) & wanted
    several = f"; {missing.sum()} of {wanted.sum()} stacks are missing" if missing.sum() > 1 else ""
    problems.add(
        missing[raw.file_code],
        lambda row: (
            f"image stack {raw.file_names[raw.file_code[row]]} not found "
            f"{finder.where(raw.file_names[raw.file_code[row]])}{several}"
        ),
        "Pass images_dir=, the folder that holds the stacks, or metadata_only=True to do without images.",
    )
    for code, path in enumerate(paths):
        try:
            files.append(None if path is None else inspect_mrc(path))
        except ParticleDataError as error:
            files.append(None)
            problems.add(raw.file_code == code, str(error), "")
    return files


def _check_boxes(raw: RawParticles, problems: RowProblems, files: list[FrameFile | None]) -> None:
    box = np.array([0 if file is None else file.box for file in files])[raw.file_code]  # (n,)
    if raw.box is not None:
        problems.add(
            np.isfinite(raw.box) & (raw.box != box),
            lambda row: (
                f"wrong box: {raw.image_name(row)} has {box[row]} px, the metadata say {raw.box[row]:.0f}"
            ),
            "Use the stack that belongs to this metadata (images_dir=), or extract the particles again.",
        )
    usable = problems.keep
    sizes, counts = np.unique(box[usable], return_counts=True)
    if len(sizes) < 2:
        return
    most = sizes[np.argmax(counts)]
    by_group = {
        int(group): sorted({int(b) for b in box[usable & (raw.optics_group == group)]})
        for group in np.unique(raw.optics_group[usable])
    }
    problems.add(
        box != most,
        lambda row: (
            f"wrong box: {raw.image_name(row)} has {box[row]} px, most have {most} px "
            f"(boxes by optics group: {by_group})"
        ),
        "Pass rescale=True to bring groups of several boxes and pixel sizes to one, choose some with "
        "optics_groups=, or extract all in one box.",
    )


def _source(
    raw: RawParticles, problems: RowProblems, files: list[FrameFile | None]
) -> tuple[ImageSource, float | None]:
    good_row = int(np.flatnonzero(problems.keep)[0])
    box = files[raw.file_code[good_row]].box
    sound = [code for code, file in enumerate(files) if file is not None and file.box == box]
    position = np.full(len(files), -1)
    position[sound] = np.arange(len(sound))
    # Rows to be dropped point at the first good image until then, so that rows stay numbered as read.
    file_index = np.where(problems.keep, position[raw.file_code], position[raw.file_code[good_row]])
    frame = np.where(problems.keep, raw.frame, raw.frame[good_row])
    sizes = {round(files[code].pixel_size or 0.0, 4) for code in sound}
    n_dropped = np.bincount(raw.file_code[~problems.keep], minlength=len(files))
    _question_files([files[code] for code in sound if n_dropped[code] == 0])
    source = FileSource([files[code] for code in sound], file_index, frame)
    return source, sizes.pop() or None if len(sizes) == 1 else None


def _question_files(files: list[FrameFile]) -> None:
    """Warn of files whose length is not what their header says, and of pixels that are not square."""
    too_long = [file for file in files if file.size > file.offset + file.n_images * file.image_bytes]
    if too_long:
        first = too_long[0]
        expected = first.offset + first.n_images * first.image_bytes
        notify(
            "stack-too-long",
            f"{len(too_long)} stack(s) are longer than their header says: {first.path} has {first.size:,} "
            f"bytes, expected {expected:,} for its {first.n_images:,} images, so {first.size - expected:,} "
            f"bytes, {(first.size - expected) / first.image_bytes:g} images, are not read. If the header is "
            "wrong in the type of the pixels or the length of the extended header, all images are wrong: "
            "look at them, and copy or extract the stack again.",
            stacklevel=6,
        )
    oblong = [file for file in files if are_unlike(file.pixel_size, file.pixel_size_along_y)]
    if oblong:
        first = oblong[0]
        notify(
            "pixels-not-square",
            f"{len(oblong)} stack(s) have pixels that are not square by their header: {first.path} says "
            f"{first.pixel_size:.6g} A along x and {first.pixel_size_along_y:.6g} A along y, expected one "
            "length. That along x is taken; pass pixel_size=, or correct the header.",
            stacklevel=6,
        )
    truncated = [file.path for file in files if file.n_whole_images < file.n_images]
    if truncated:
        notify(
            "stack-truncated",
            f"{len(truncated)} stack(s) are truncated, though the particles used of them are whole: "
            f"{truncated[0]}. Copy or extract them again.",
            stacklevel=6,
        )


def _one_pixel_size(
    raw: RawParticles, problems: RowProblems, given: float | None, header_size: float | None
) -> float | None:
    """The pixel size of all particles: given, else by the metadata, else by the headers."""
    if given is not None:
        return float(given)
    if raw.pixel_size is None:
        return _header_pixel_size(raw, problems, header_size)
    limits = RANGES["pixel_size"]
    problems.add(np.isnan(raw.pixel_size), "the pixel size is missing (NaN)", limits.remedy)
    problems.add(
        limits.cannot_be(raw.pixel_size),
        lambda row: limits.says(raw.pixel_size[row], limits.possible),
        limits.remedy,
    )
    problems.check_any_left()
    usable = problems.keep
    sizes = raw.pixel_size[usable]
    if np.ptp(sizes) > _SAME_PIXEL_SIZE * sizes.max():
        groups = raw.optics_group[usable]
        by_group = {int(g): np.unique(sizes[groups == g]).round(4).tolist() for g in np.unique(groups)}
        raise ParticleDataError(
            f"{raw.path}: the particles have several pixel sizes (Angstrom by optics group: {by_group}). "
            "Pass rescale=True to bring them to one, choose groups of one size with optics_groups=, or, if "
            "the difference is negligible, pass the common pixel_size=."
        )
    return float(np.median(sizes))


def _header_pixel_size(raw: RawParticles, problems: RowProblems, header_size: float | None) -> float | None:
    """The pixel size of image headers, where the metadata give none."""
    unknown = header_size in (None, UNKNOWN_PIXEL_SIZE)
    of_one = "" if header_size is None else " (1 A in a header is what programs write that do not know it)"
    if unknown and problems.keep.any() and (need := _needs_pixel_size(raw)):
        raise ParticleDataError(
            f"{raw.path}: neither the metadata nor the images give a pixel size{of_one}, which the {need}. "
            "Pass pixel_size= in Angstrom."
        )
    if header_size is not None:
        taken = "leaving it unknown, for the" if unknown else f"taking {header_size:g} A from the"
        notify(
            "pixel-size-from-header",
            f"{raw.path}: the metadata do not give a pixel size; {taken} headers of the images"
            f"{' say 1 A, as programs write that do not know it' if unknown else ''}. Pass pixel_size= to be "
            "sure.",
            stacklevel=5,
        )
    return None if unknown else header_size


def _needs_pixel_size(raw: RawParticles) -> str:
    """What of the metadata cannot be used without a pixel size; empty if all can."""
    if raw.ctf is not None:
        return "CTF needs"
    return "shifts in Angstrom need" if raw.shift is not None and not raw.shift_unit_is_pixel else ""


def _check_pixels(source: ImageSource, problems: RowProblems, verbose: int) -> None:
    kept = np.flatnonzero(problems.keep)
    bad = find_bad_images(source.take(kept), verbose=verbose)
    rows = kept[bad["row"].to_numpy()]
    why = dict(zip(rows.tolist(), (bad["image"] + " " + bad["problem"]).tolist(), strict=True))
    problems.add(rows, lambda row: why[row], "Drop that particle, or extract it again.")


def _stack(raw: RawParticles, kept: np.ndarray, source: ImageSource, size: float | None) -> ParticleStack:
    poses = None
    if raw.shift is not None and raw.angle_rad is not None:
        unit = 1.0 if not raw.shift_unit_is_pixel or size is None else size
        mirrored = False if raw.mirrored is None else raw.mirrored[kept]
        poses = Poses(raw.angle_rad[kept], raw.shift[kept] * unit, mirrored)
    everything = len(kept) == len(source)
    return ParticleStack(
        source if everything else source.take(kept),
        pixel_size=size,
        ctf=None if raw.ctf is None else CTFTable(**{name: v[kept] for name, v in raw.ctf.items()}),
        poses=poses,
        optics_group=raw.optics_group[kept],
        noise_group=raw.noise_group[kept],
        metadata=raw.metadata if everything else raw.metadata.iloc[kept],
        optics=raw.optics,
    )
