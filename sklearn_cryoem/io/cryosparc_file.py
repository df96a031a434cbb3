"""The files of a cryoSPARC job: loading a table, following a group, joining what is spread over several.

A .cs file is a numpy array with named fields. In a stack's metadata every field is a column; a field of
several numbers is one column for each, ``alignments3D/pose[0]``, so that all survive slicing and writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from sklearn_cryoem._core.files import check_content
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io.records import CRYOSPARC_CTF

# numpy's limit of 10,000 guards its parser against hostile files; a job of many classes has several hundred
# fields of some 60 bytes each.
_MAX_HEADER_BYTES = 2**20
_KINDS = {
    "biufSUV": "numbers or text",
    "iuf": "numbers",
    "iu": "whole numbers",
    "SU": "text",
}  # numpy's kinds
_ANY_KIND = "biufSUV"  # as numpy names them; V is a gap between fields
_FIELDS = {  # what is read of a table: kind, and the shape of the field in one row
    "uid": ("iu", ()), "blob/path": ("SU", ()), "blob/idx": ("iu", ()), "blob/shape": ("iu", (2,)),
    "blob/psize_A": ("iuf", ()), "blob/sign": ("iuf", ()), "ctf/exp_group_id": ("iu", ()),
    **{field: ("iuf", ()) for field, _, _ in CRYOSPARC_CTF.values()},
    "alignments2D/pose": ("iuf", ()), "alignments2D/shift": ("iuf", (2,)),
    "alignments2D/psize_A": ("iuf", ()), "alignments2D/class": ("iu", ()),
    "alignments2D/class_posterior": ("iuf", ()),
    "alignments3D/pose": ("iuf", (3,)), "alignments3D/shift": ("iuf", (2,)),
    "alignments3D/psize_A": ("iuf", ()), "alignments3D/split": ("iu", ()),
}  # fmt: skip
_OTHER_TABLES = (  # prefixes that give a table away, what it is, and what to do instead
    (
        {"micrograph_blob", "movie_blob", "mscope_params", "gain_ref_blob", "rigid_motion"},
        "a table of exposures, movies or micrographs, not of particles",
        "Extract particles from them, and give the table of these",
    ),
    (
        {"map", "mask"},
        "a table of a volume, not a table of particles",
        "Read the map that it names with load_volume",
    ),
    ({"location", "pick_stats"}, "a table of picks, not of particle images", "Extract the particles first"),
)
_ODD_BYTES = "surrogateescape"  # what is not UTF-8 is written as it came


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
        Structured array of particle images, in the order of the first table.
    """
    first, *others = _files_of_group(path) if path.suffix.lower() == ".csg" else [path]
    records = _load(first)
    for other in [*others, *map(Path, passthrough)]:
        records = _join(records, _load(other), path, other)
    _check_has_images(records, path)
    return records


def _load(path: Path) -> np.ndarray:
    """Load the structured array of a .cs file; raises ParticleDataError if it is none."""
    if not path.is_file():
        raise ParticleDataError(f"{path}: no such file. Copy it from the same job as the other one.")
    check_content(path, "a cryoSPARC table", "npy")
    try:
        with open(path, "rb") as stream:
            records = np.load(stream, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES)
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
    damage = _damage(records)
    if damage:
        raise ParticleDataError(f"{path}: {damage}, so the table is damaged. Copy or export it again.")
    # pandas takes the byte order of the machine only
    return records.astype(records.dtype.newbyteorder("="), copy=False)


def _damage(records: np.ndarray) -> str:
    """Why an array cannot be a table with a row for each particle; empty if it can."""
    if not isinstance(records, np.ndarray) or records.dtype.names is None:
        return "an array without named fields"
    if records.ndim != 1:
        return f"an array of {records.ndim} dimensions, expected a row a particle"
    for name in records.dtype.names:
        if not (name.isascii() and name.isprintable()):
            return f"a field is called {name!a}"
        kinds, shape = _FIELDS.get(name, (_ANY_KIND, None))
        field = records.dtype[name]
        if field.base.kind not in kinds or shape not in (None, field.shape):
            of_shape = f" of shape {shape}" if shape else ""
            return f"field {name} is of type {field}, expected {_KINDS[kinds]}{of_shape}"
    return ""


def _check_has_images(records: np.ndarray, path: Path) -> None:
    """Raise ParticleDataError, which says what a table is, unless it is one of particle images."""
    names = records.dtype.names or ()
    if len(records) == 0:
        raise ParticleDataError(f"{path}: holds no particle. Check the job that wrote it.")
    if "blob/path" in names and "blob/idx" in names:
        return
    prefixes = {name.split("/")[0] for name in names} - {"uid"}
    listed = ", ".join(sorted(prefixes))
    what, remedy = next(
        ((what, remedy) for telling, what, remedy in _OTHER_TABLES if prefixes & telling),
        ("not a table of particles", "Give the particles of a job"),
    )
    if prefixes & {"alignments2D", "alignments3D", "ctf"} and "exposures" not in what:
        raise ParticleDataError(
            f"{path}: no field blob/path, which says where the images are (fields: {listed}). Pass "
            f"passthrough= the passthrough file of the same job{file_beside(path, 'blob/path')}."
        )
    raise ParticleDataError(f"{path}: this is {what} (fields: {listed}). {remedy}.")


def file_beside(path: Path, field: str) -> str:
    """A hint at the passthrough file of the same job that has a field; empty if there is none."""
    job = re.search(r"J\d+(?!\d)", path.name)
    for other in sorted(path.parent.glob("*passthrough*.cs")):
        if job is not None and re.search(rf"{job[0]}(?!\d)", other.name) is None:
            continue
        try:
            fields = np.load(other, mmap_mode="r", max_header_size=_MAX_HEADER_BYTES).dtype.names
        except Exception:  # a hint is no place to complain of a damaged file
            continue
        if field in (fields or ()):
            return f" (perhaps {other.name})"
    return ""


def _files_of_group(path: Path) -> list[Path]:
    """The tables a .csg group refers to: the job's own first, then the passthrough ones."""
    content = _group_content(path)
    group, results = content.get("group"), content.get("results")
    kind = group.get("type") if isinstance(group, dict) else None
    if kind != "particle":
        found = f"a group of type {kind}" if kind else "no cryoSPARC group"
        raise ParticleDataError(
            f"{path}: this is {found}, not of particles. Give the group of the particles."
        )
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
    return sorted(members, key=lambda member: "passthrough" in member.name)


def _group_content(path: Path) -> dict:
    """The YAML of a .csg file; empty if it is a list or a text."""
    check_content(path, "a cryoSPARC group", "text")
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
        if "uid" not in table.dtype.names:
            raise ParticleDataError(
                f"{path} and {other_path} cannot be joined: no field uid in {name}. Export it again."
            )
    uids = pd.Index(other["uid"].astype(np.uint64))
    if not uids.is_unique:
        repeated = uids[uids.duplicated()].unique()
        raise ParticleDataError(
            f"{other_path}: {len(repeated):,} uids are there more than once, the first {repeated.min()}, so "
            "the rows of these particles are not known. Export it again."
        )
    place = uids.get_indexer(records["uid"].astype(np.uint64))  # (n,), -1 where there is none
    if (place < 0).any():
        raise ParticleDataError(
            f"{other_path}: lacks {(place < 0).sum()} of the {len(records)} particles of {path}, the first "
            f"with uid {records['uid'][place < 0][0]}. Take both files from the same job."
        )
    columns = {name: records[name] for name in records.dtype.names}  # not the gaps between them
    columns |= {name: other[name][place] for name in other.dtype.names if name not in columns}
    return _as_records(columns, len(records))


def _as_records(columns: dict[str, np.ndarray], n_rows: int) -> np.ndarray:
    dtype = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    records = np.zeros(n_rows, dtype=dtype)
    for name, values in columns.items():
        records[name] = values
    return records


def records_to_table(records: np.ndarray) -> pd.DataFrame:
    """Turn a structured array into a table, one column for each number: ``name`` or ``name[i]``."""
    columns = {}
    for name in records.dtype.names:
        field = records[name]
        if field.dtype.kind in "SU":
            text = np.char.decode(field, "utf-8", _ODD_BYTES) if field.dtype.kind == "S" else field
            field = pd.Series(text.astype(object), dtype=object) if text.ndim == 1 else text.astype(object)
        if field.ndim == 1:
            columns[name] = field
        else:
            flat = field.reshape(len(field), -1)
            shape = "x".join(str(side) for side in field.shape[1:])
            suffix = "" if field.ndim == 2 else f" of {shape}"
            columns.update({f"{name}[{i}{suffix}]": flat[:, i] for i in range(flat.shape[1])})
    return pd.DataFrame(columns)


def table_to_records(table: pd.DataFrame) -> np.ndarray:
    """Inverse of `records_to_table`; text becomes bytes."""
    fields: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for place, column in enumerate(table.columns):
        match = re.fullmatch(r"(.*)\[(\d+)(?: of ([\dx]+))?\]", str(column))
        name = match[1] if match else str(column)
        values = table.iloc[:, place].to_numpy()
        if values.dtype.kind not in "fiub":
            values = np.array([str(value).encode("utf-8", _ODD_BYTES) for value in values], dtype=np.bytes_)
        fields.setdefault(name, []).append(values)
        if match:
            shapes[name] = tuple(int(side) for side in match[3].split("x")) if match[3] else ()
    columns = {
        name: np.stack(parts, axis=1).reshape(len(table), *(shapes[name] or (len(parts),)))
        if name in shapes
        else parts[0]
        for name, parts in fields.items()
    }
    return _as_records(columns, len(table))


def save_records(stream: BinaryIO, records: np.ndarray) -> None:
    """Write a .cs file; in numpy's format 2.0, which allows a longer header, only where it has to be."""
    try:
        np.lib.format.write_array(stream, records, version=(1, 0), allow_pickle=False)
    except ValueError:  # raised before anything is written
        np.lib.format.write_array(stream, records, version=(2, 0), allow_pickle=False)
