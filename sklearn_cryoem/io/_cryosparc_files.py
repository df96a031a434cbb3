"""The files of a cryoSPARC job: loading a table, following a group, joining what is spread over several."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.files import other_content

# numpy's limit of 10,000 guards its parser against hostile files; a job of many classes has several hundred
# fields of some 60 bytes each.
_LONGEST_HEADER = 2**20
_ANY, _NUMBERS, _WHOLE, _TEXT = "biufSUV", "iuf", "iu", "SU"  # numpy's kinds; V is a gap between fields
_KINDS = {_ANY: "numbers or text", _NUMBERS: "numbers", _WHOLE: "whole numbers", _TEXT: "text"}
_FIELDS = {  # what is read of a table: kind, and the shape of the field in one row
    "uid": (_WHOLE, ()), "blob/path": (_TEXT, ()), "blob/idx": (_WHOLE, ()), "blob/shape": (_WHOLE, (2,)),
    "blob/psize_A": (_NUMBERS, ()), "blob/sign": (_NUMBERS, ()), "ctf/exp_group_id": (_WHOLE, ()),
    "ctf/df1_A": (_NUMBERS, ()), "ctf/df2_A": (_NUMBERS, ()), "ctf/df_angle_rad": (_NUMBERS, ()),
    "ctf/accel_kv": (_NUMBERS, ()), "ctf/cs_mm": (_NUMBERS, ()), "ctf/amp_contrast": (_NUMBERS, ()),
    "ctf/phase_shift_rad": (_NUMBERS, ()), "ctf/bfactor": (_NUMBERS, ()), "ctf/scale": (_NUMBERS, ()),
    "alignments2D/pose": (_NUMBERS, ()), "alignments2D/shift": (_NUMBERS, (2,)),
    "alignments2D/psize_A": (_NUMBERS, ()), "alignments2D/class": (_WHOLE, ()),
    "alignments2D/class_posterior": (_NUMBERS, ()),
    "alignments3D/pose": (_NUMBERS, (3,)), "alignments3D/shift": (_NUMBERS, (2,)),
    "alignments3D/psize_A": (_NUMBERS, ()), "alignments3D/split": (_WHOLE, ()),
}  # fmt: skip
_OTHER_TABLES = (  # prefixes that give a table away, what it is, and what to do instead
    (
        ("micrograph_blob", "movie_blob", "mscope_params", "gain_ref_blob", "rigid_motion"),
        "a table of exposures, movies or micrographs, not of particles",
        "Extract particles from them, and give the table of these",
    ),
    (
        ("map", "mask"),
        "a table of a volume, not a table of particles",
        "Read the map that it names with load_volume",
    ),
    (("location", "pick_stats"), "a table of picks, not of particle images", "Extract the particles first"),
)


def load_records(path: Path) -> np.ndarray:
    """Load the structured array of a .cs file; raises ParticleDataError if it is none."""
    if not path.is_file():
        raise ParticleDataError(f"{path}: no such file. Copy it from the same job as the other one.")
    problem = other_content(path, "a cryoSPARC table", "npy")
    if problem:
        raise ParticleDataError(f"{path}: {problem}")
    try:
        with open(path, "rb") as stream:
            records = np.load(stream, allow_pickle=False, max_header_size=_LONGEST_HEADER)
            n_more = len(stream.read())
    except Exception as error:  # numpy evaluates the header: a damaged one can raise nearly anything
        reason = " ".join(str(error).split())  # of a file that was cut off it says so
        raise ParticleDataError(
            f"{path}: cannot be read as a cryoSPARC table ({reason}). Copy or export it again."
        ) from error
    if n_more:
        raise ParticleDataError(
            f"{path}: holds {n_more:,} bytes more than its header says, so particles would be lost or "
            "shifted. Copy or export it again; read tables that were joined as files one by one, and join "
            "them with concatenate."
        )
    if not isinstance(records, np.ndarray) or records.dtype.names is None:
        raise ParticleDataError(f"{path}: an array without named fields, so not a cryoSPARC table. Check it.")
    odd = [name for name in records.dtype.names if not (name.isascii() and name.isprintable())]
    if odd:
        raise ParticleDataError(
            f"{path}: a field is called {odd[0]!a}, so the table is damaged. Copy or export it again."
        )
    _check_kinds(records, path)
    # pandas takes the byte order of the machine only
    return records.astype(records.dtype.newbyteorder("="), copy=False)


def _check_kinds(records: np.ndarray, path: Path) -> None:
    """Raise ParticleDataError unless there is a row for each particle, of the numbers and texts expected."""
    if records.ndim != 1:
        raise ParticleDataError(
            f"{path}: an array of {records.ndim} dimensions, expected a row a particle. Export it again."
        )
    for name in records.dtype.names:
        kinds, shape = _FIELDS.get(name, (_ANY, None))
        field = records.dtype[name]
        if field.base.kind not in kinds or shape not in (None, field.shape):
            raise ParticleDataError(
                f"{path}: field {name} is of type {field}, expected {_KINDS[kinds]}"
                f"{f' of shape {shape}' if shape else ''}, so the table is damaged. Copy or export it again."
            )


def load_joined(path: Path, passthrough: Iterable[str | Path]) -> np.ndarray:
    """Load a .cs file or a .csg group, with the fields that it lacks from other files, row by equal uid.

    Parameters
    ----------
    path : Path
        The table of a job, or a group, whose files are then read.
    passthrough : iterable of str or Path
        More files; of fields that several have the first counts.

    Returns
    -------
    ndarray
        Structured array, in the order of the first table.
    """
    first, others = _group_members(path) if path.suffix.lower() == ".csg" else (path, [])
    records = load_records(first)
    for other in [*others, *map(Path, passthrough)]:
        records = _join(records, load_records(other), path, other)
    return records


def check_has_images(records: np.ndarray, path: Path) -> None:
    """Raise ParticleDataError, which says what a table is, unless it is one of particle images."""
    names = records.dtype.names or ()
    if len(records) == 0:
        raise ParticleDataError(f"{path}: holds no particle. Check the job that wrote it.")
    if "blob/path" in names and "blob/idx" in names:
        return
    prefixes = {name.split("/")[0] for name in names} - {"uid"}
    listed = ", ".join(sorted(prefixes))
    what, remedy = next(
        ((what, remedy) for telling, what, remedy in _OTHER_TABLES if not prefixes.isdisjoint(telling)),
        ("not a table of particles", "Give the particles of a job"),
    )
    if prefixes & {"alignments2D", "alignments3D", "ctf"} and "exposures" not in what:
        raise ParticleDataError(
            f"{path}: no field blob/path, which says where the images are (fields: {listed}). Pass "
            f"passthrough= the passthrough file of the same job{beside(path, 'blob/path')}."
        )
    raise ParticleDataError(f"{path}: this is {what} (fields: {listed}). {remedy}.")


def beside(path: Path, field: str) -> str:
    """A hint at the passthrough file of the same job that has a field; empty if there is none."""
    job = re.search(r"J\d+(?!\d)", path.name)
    for other in sorted(path.parent.glob("*passthrough*.cs")):
        if job is not None and re.search(rf"{job[0]}(?!\d)", other.name) is None:
            continue
        try:
            fields = np.load(other, mmap_mode="r", max_header_size=_LONGEST_HEADER).dtype.names
        except Exception:  # a hint is no place to complain of a damaged file
            continue
        if field in (fields or ()):
            return f" (perhaps {other.name})"
    return ""


def _group_members(path: Path) -> tuple[Path, list[Path]]:
    """The tables a .csg group refers to: the job's own first, then the passthrough ones."""
    content = _group_content(path)
    group = content.get("group")
    kind = group.get("type") if isinstance(group, dict) else None
    if kind != "particle":
        found = f"a group of type {kind}" if kind else "no cryoSPARC group"
        raise ParticleDataError(
            f"{path}: this is {found}, not of particles. Give the group of the particles."
        )
    results = content.get("results")
    files = [
        str(result["metafile"]).removeprefix(">")
        for result in (results.values() if isinstance(results, dict) else ())
        if isinstance(result, dict) and result.get("metafile")
    ]
    members = [path.parent / name for name in dict.fromkeys(files)]
    missing = [str(member) for member in members if not member.is_file()]
    if missing or not members:
        raise ParticleDataError(
            f"{path}: not there, though the group refers to it: {', '.join(missing) or 'any file'}. "
            "Copy all files of the group into one folder."
        )
    members.sort(key=lambda member: "passthrough" in member.name)
    return members[0], members[1:]


def _group_content(path: Path) -> dict:
    """The YAML of a .csg file; empty if it is a list or a text."""
    problem = other_content(path, "a cryoSPARC group", "text")
    if problem:
        raise ParticleDataError(f"{path}: {problem}")
    try:
        import yaml
    except ImportError as error:  # the tables themselves are read without it
        raise ParticleDataError(
            f"{path}: a .csg file is YAML, and PyYAML is not there. Install it with: pip install "
            "'sklearn-cryoem[cryosparc]'; or give the .cs file of the particles, and the others with "
            "passthrough=."
        ) from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ParticleDataError(
            f"{path}: cannot be read as YAML ({reason}). Copy or export it again."
        ) from error
    return content if isinstance(content, dict) else {}


def _join(records: np.ndarray, other: np.ndarray, path: Path, other_path: Path) -> np.ndarray:
    """Add the fields of `other` that `records` lacks, row by row of equal uid."""
    for table, name in ((records, path), (other, other_path)):
        if "uid" not in (table.dtype.names or ()):
            raise ParticleDataError(
                f"{path} and {other_path} cannot be joined: no field uid in {name}. Export it again."
            )
    uids, first, counts = np.unique(other["uid"], return_index=True, return_counts=True)
    if (counts > 1).any():
        raise ParticleDataError(
            f"{other_path}: {(counts > 1).sum():,} uids are there more than once, the first "
            f"{uids[counts > 1][0]}, so nobody can say which row is a particle's. Export it again."
        )
    place = np.minimum(np.searchsorted(uids, records["uid"]), max(len(uids) - 1, 0))
    lost = np.flatnonzero(uids[place] != records["uid"]) if len(uids) else np.arange(len(records))
    if lost.size:
        raise ParticleDataError(
            f"{other_path}: lacks {lost.size} of the {len(records)} particles of {path}, the first with uid "
            f"{records['uid'][lost[0]]}. Take both files from the same job."
        )
    match = first[place]
    new = [name for name in other.dtype.names if name not in records.dtype.names]
    fields = [(name, records.dtype[name]) for name in records.dtype.names]  # not the gaps between them
    joined = np.zeros(len(records), dtype=fields + [(name, other.dtype[name]) for name in new])
    for name in records.dtype.names:
        joined[name] = records[name]
    for name in new:
        joined[name] = other[name][match]
    return joined
