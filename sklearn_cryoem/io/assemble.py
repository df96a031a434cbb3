"""From metadata to a stack: find the images, check that they fit, drop or refuse what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sklearn_cryoem._core.validation import ParticleDataError, notify
from sklearn_cryoem.io.checks import RANGES, add_impossible, check_pixel_size, check_poses
from sklearn_cryoem.io.image_files import ImageFinder, are_unlike, oblong_pixels, split_image_name
from sklearn_cryoem.io.records import RawParticles, RowProblems
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses, concatenate
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.frames import UNKNOWN_PIXEL_SIZE, common_frame
from sklearn_cryoem.particles.mrc_files import FrameFile, inspect_mrc
from sklearn_cryoem.particles.preprocess import find_bad_images
from sklearn_cryoem.particles.sources import AbsentSource, ImageSource

_SAME_PIXEL_SIZE = 1e-3  # relative
_DIGITS = 4  # of a pixel size in Angstrom that tell two apart

Files = list[FrameFile | None]  # in the order of `RawParticles.file_names`; None for one that is unsound


def assemble(
    raw: RawParticles,
    problems: RowProblems,
    *,
    images_dir: str | Path | None,
    pixel_size: float | None,
    rescale: bool,
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
    images_dir, pixel_size, rescale, metadata_only, verbose
        See `read_particles`.
    check_images : bool
        Whether all images are read, to report those that are constant or not finite.

    Returns
    -------
    ParticleStack
        In the order of the file, without the rows that `problems` has dropped.

    Raises
    ------
    ParticleDataError
        If the particles cannot be used together, or (unless permissive) one cannot be used.
    """
    files = None if metadata_only else _find_files(raw, problems, images_dir)
    part = _parts(raw) if rescale and pixel_size is None else np.zeros(len(raw.frame), dtype=np.int64)  # (n,)
    parts = [part == number for number in np.unique(part[problems.keep])]
    frames = [_frame(raw, problems, rows, files, pixel_size) for rows in parts]
    if len(set(frames)) == 1:
        parts, frames = [part >= 0], frames[:1]
    stacks, kept = [], []
    for rows, (box, size) in zip(parts, frames, strict=True):
        if pixel_size is None and size is not None:
            used_files = _used_files(raw, problems.keep & rows, files)
            check_pixel_size(raw.path, size, box, [file.pixel_size for file in used_files])
        check_poses(raw, problems, rows, box, size)
        used = problems.keep & rows
        if check_images and files is not None and used.any():
            _check_pixels(_source(raw, used, files, box), used, problems, verbose)
            used = problems.keep & rows
        if used.any():
            stacks.append(_stack(raw, used, _source(raw, used, files, box), size))
            kept.append(np.flatnonzero(used))
    problems.check_any_left()
    if files is not None:
        codes = np.setdiff1d(raw.file_code, raw.file_code[~problems.keep])  # of the others all is said
        _warn_of_odd_files([files[code] for code in codes])
    if len(stacks) == 1:
        return stacks[0]
    return _in_one_frame(raw, stacks, np.concatenate(kept))


def _in_one_frame(raw: RawParticles, stacks: list[ParticleStack], rows: np.ndarray) -> ParticleStack:
    """Join stacks of several pixel sizes or boxes, which hold the given rows one after the other."""
    if any(stack.pixel_size is None for stack in stacks):
        raise ParticleDataError(
            f"{raw.path}: particles can be rescaled only where their pixel sizes are known. Read the groups "
            "one by one with optics_groups= and pixel_size=, and join them with concatenate."
        )
    has_boxes = all(stack.box for stack in stacks)
    if not has_boxes:  # a table alone need not say them
        size, _ = common_frame(stacks)
        stacks = [stack._replace(images=AbsentSource(len(stack), 0), pixel_size=size) for stack in stacks]
    joined = concatenate(stacks, rescale=has_boxes)._replace(
        optics=raw.optics, noise_group=raw.noise_group[rows], optics_group=raw.optics_group[rows]
    )
    return joined[np.argsort(rows, kind="stable")]


def _parts(raw: RawParticles) -> np.ndarray:
    """Number of the optics group and pixel size of each particle; (n,)."""
    size = np.zeros(len(raw.frame)) if raw.pixel_size is None else np.round(raw.pixel_size, _DIGITS)
    keys = np.column_stack([raw.optics_group, np.nan_to_num(size)])  # (n, 2)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def _find_files(raw: RawParticles, problems: RowProblems, images_dir: str | Path | None) -> Files:
    """Find every file, read its header once, and report images that are not in it."""
    finder = ImageFinder(raw.path, images_dir)
    names, code = raw.file_names, raw.file_code
    wanted = np.bincount(code[problems.keep], minlength=len(names)) > 0
    paths = [finder.find(name) if wanted[place] else None for place, name in enumerate(names)]
    missing = np.array([path is None for path in paths]) & wanted
    several = f"; {missing.sum()} of {wanted.sum()} stacks are missing" if missing.sum() > 1 else ""
    problems.add(
        missing[code],
        lambda row: f"image stack {names[code[row]]} not found {finder.where(names[code[row]])}{several}",
        "Pass images_dir=, the folder that holds the stacks, or metadata_only=True to do without images.",
    )
    files: Files = []
    for place, path in enumerate(paths):
        try:
            files.append(None if path is None else inspect_mrc(path))
        except ParticleDataError as error:
            files.append(None)
            problems.add(code == place, str(error), "")
    n_images = np.array([0 if file is None else file.n_images for file in files])[code]  # (n,)
    n_whole = np.array([0 if file is None else file.n_whole_images for file in files])[code]
    if "rlnImageName" in raw.metadata:
        named = raw.metadata["rlnImageName"].astype(str)
        unnumbered = np.array([split_image_name(name)[0] is None for name in named], dtype=bool)
        problems.add(
            unnumbered & (n_images > 1),
            lambda row: f"{names[code[row]]} holds {n_images[row]} images, and no number says which",
            "Write its number before an @, such as 000001@stack.mrcs.",
        )
    problems.add(
        (raw.frame < 0) | (raw.frame >= n_images),
        lambda row: f"{raw.image_name(row)} does not exist, its file holds {n_images[row]} images",
        "Use the stack that belongs to this metadata (images_dir=), or extract the particles again.",
    )
    problems.add(
        raw.frame >= n_whole,
        lambda row: (
            f"{files[code[row]].path} is truncated: its header promises {n_images[row]} images, "
            f"it holds {n_whole[row]} whole ones, and this is image {raw.frame[row] + 1}"
        ),
        "Copy or extract that stack again.",
    )
    return files


def _frame(
    raw: RawParticles, problems: RowProblems, rows: np.ndarray, files: Files | None, pixel_size: float | None
) -> tuple[int, float | None]:
    """Box and pixel size of some rows, a mask; reports those that have another box or none."""
    if files is None:
        known = [] if raw.box is None else np.unique(raw.box[rows & np.isfinite(raw.box)])
        box, header_sizes = int(known[0]) if len(known) == 1 else 0, set()
    else:
        box = _common_box(raw, problems, rows, files)
        used = _used_files(raw, problems.keep & rows, files)
        header_sizes = {round(file.pixel_size or 0.0, _DIGITS) for file in used}
    if not (problems.keep & rows).any():  # all of them were dropped
        return box, None
    if pixel_size is not None:
        return box, float(pixel_size)
    if raw.pixel_size is not None:
        return box, _common_pixel_size(raw, problems, rows)
    header_size = header_sizes.pop() if len(header_sizes) == 1 else None
    return box, _header_pixel_size(raw, header_size or None)


def _common_box(raw: RawParticles, problems: RowProblems, rows: np.ndarray, files: Files) -> int:
    """The box of most of the rows; reports the others."""
    box = np.array([0 if file is None else file.box for file in files])[raw.file_code]  # (n,)
    if raw.box is not None:
        problems.add(
            rows & np.isfinite(raw.box) & (raw.box != box),
            lambda row: (
                f"wrong box: {raw.image_name(row)} has {box[row]} px, the metadata say {raw.box[row]:.0f}"
            ),
            "Use the stack that belongs to this metadata (images_dir=), or extract the particles again.",
        )
    problems.check_any_left()
    usable = problems.keep & rows
    if not usable.any():
        return 0
    sizes, counts = np.unique(box[usable], return_counts=True)
    most = int(sizes[np.argmax(counts)])
    problems.add(
        usable & (box != most),
        lambda row: (
            f"wrong box: {raw.image_name(row)} has {box[row]} px, most have {most} px "
            f"(boxes by optics group: {_by_group(raw, usable, box)})"
        ),
        "Pass rescale=True to bring groups of several boxes and pixel sizes to one, choose some with "
        "optics_groups=, or extract all in one box.",
    )
    return most


def _by_group(raw: RawParticles, rows: np.ndarray, values: np.ndarray) -> dict[int, list]:
    """Distinct values of the particles of each optics group, for messages."""
    groups = raw.optics_group[rows]
    return {int(g): np.unique(values[rows][groups == g]).round(4).tolist() for g in np.unique(groups)}


def _common_pixel_size(raw: RawParticles, problems: RowProblems, rows: np.ndarray) -> float | None:
    """The pixel size of some rows by the metadata."""
    sizes = raw.pixel_size
    problems.add(rows & np.isnan(sizes), "the pixel size is missing (NaN)", RANGES["pixel_size"].remedy)
    add_impossible("pixel_size", np.where(rows, sizes, np.nan), problems)
    problems.check_any_left()
    usable = problems.keep & rows
    if not usable.any():
        return None
    if np.ptp(sizes[usable]) > _SAME_PIXEL_SIZE * sizes[usable].max():
        raise ParticleDataError(
            f"{raw.path}: the particles have several pixel sizes (Angstrom by optics group: "
            f"{_by_group(raw, usable, sizes)}). Pass rescale=True to bring them to one, choose groups of one "
            "size with optics_groups=, or, if the difference is negligible, pass the common pixel_size=."
        )
    return float(np.median(sizes[usable]))


def _header_pixel_size(raw: RawParticles, size: float | None) -> float | None:
    """The pixel size of image headers, where the metadata give none; `size` is None if they differ."""
    is_unknown = size in (None, UNKNOWN_PIXEL_SIZE)
    in_angstrom = raw.shift is not None and not raw.shift_unit_is_pixel
    if is_unknown and (raw.ctf is not None or in_angstrom):
        need = "shifts in Angstrom need" if raw.ctf is None else "CTF needs"
        raise ParticleDataError(
            f"{raw.path}: neither the metadata nor the images give a pixel size (1 A in a header is what "
            f"programs write that do not know it), which the {need}. Pass pixel_size= in Angstrom."
        )
    if size is not None:
        taken = (
            "leaving it unknown, for the headers of the images say 1 A, as programs write that do not know it"
            if is_unknown
            else f"taking {size:g} A from the headers of the images"
        )
        notify(
            "pixel-size-from-header",
            f"{raw.path}: the metadata do not give a pixel size; {taken}. Pass pixel_size= to be sure.",
        )
    return None if is_unknown else size


def _used_files(raw: RawParticles, rows: np.ndarray, files: Files | None) -> list[FrameFile]:
    """Files that hold the images of some rows, in the order of their codes."""
    return [] if files is None else [files[code] for code in np.unique(raw.file_code[rows])]


def _warn_of_odd_files(files: list[FrameFile]) -> None:
    """Warn of files whose length is not what their header says, and of pixels that are not square."""
    too_long = [file for file in files if file.size > file.promised_size]
    if too_long:
        first, n_more = too_long[0], too_long[0].size - too_long[0].promised_size
        notify(
            "stack-too-long",
            f"{len(too_long)} stack(s) are longer than their header says: {first.path} has {first.size:,} "
            f"bytes, expected {first.promised_size:,} for its {first.n_images:,} images, so {n_more:,} bytes "
            f"({n_more / first.image_bytes:g} images) are not read. If the header is wrong in the type of "
            "pixels or the length of the extended header, all images are wrong: look at them, and copy or "
            "extract the stack again.",
        )
    oblong = [file for file in files if are_unlike(file.pixel_size, file.pixel_size_along_y)]
    if oblong:
        first = oblong[0]
        said = oblong_pixels(first.path, first.pixel_size, first.pixel_size_along_y)
        text = f"{len(oblong)} stack(s) have pixels that are not square. {said}"
        notify("pixels-not-square", text)
    truncated = [file.path for file in files if file.n_whole_images < file.n_images]
    if truncated:
        notify(
            "stack-truncated",
            f"{len(truncated)} stack(s) are truncated, though the particles used of them are whole: "
            f"{truncated[0]}. Copy or extract them again.",
        )


def _source(raw: RawParticles, rows: np.ndarray, files: Files | None, box: int) -> ImageSource:
    """Where the images of some rows lie."""
    if files is None:
        return AbsentSource(int(rows.sum()), box)
    code = np.unique(raw.file_code[rows], return_inverse=True)[1]
    return FileSource(_used_files(raw, rows, files), code, raw.frame[rows])


def _check_pixels(source: ImageSource, rows: np.ndarray, problems: RowProblems, verbose: int) -> None:
    """Report images that are constant or not finite; `rows` are those of `source`."""
    bad = find_bad_images(source, verbose=verbose)
    places = np.flatnonzero(rows)[bad["row"].to_numpy()]
    why = dict(zip(places.tolist(), (bad["image"] + " " + bad["problem"]).tolist(), strict=True))
    problems.add(places, lambda row: why[row], "Drop that particle, or extract it again.")


def _stack(raw: RawParticles, rows: np.ndarray, source: ImageSource, size: float | None) -> ParticleStack:
    poses = None
    if raw.angle_rad is not None:
        unit = 1.0 if not raw.shift_unit_is_pixel or size is None else size
        mirrored = False if raw.mirrored is None else raw.mirrored[rows]
        poses = Poses(raw.angle_rad[rows], raw.shift[rows] * unit, mirrored)
    return ParticleStack(
        source,
        pixel_size=size,
        ctf=None if raw.ctf is None else CTFTable(**{name: v[rows] for name, v in raw.ctf.items()}),
        poses=poses,
        optics_group=raw.optics_group[rows],
        noise_group=raw.noise_group[rows],
        metadata=raw.metadata if rows.all() else raw.metadata[rows],
        optics=raw.optics,
    )
