"""Real metadata with one thing spoilt: read as they are written, or refused in words.

Every variant of a file is read, and also by a twin of a few lines that knows neither ranges nor sentinels.
The outcome is an error that names the file (and the particle, where one is at fault), or what the twin reads,
to the last digit; a file that the twin cannot read gives what it gave before it was spoilt, or an error.
Two plausible values that were swapped are a legal other file, which nobody can tell; but where anybody can
(``tells``: NaN, 1e30, a word, -999 among angles) a result needs a warning that it did not have before.
"""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sklearn_cryoem import read_particles
from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.particles import class_labels

N_ROWS = 12  # of the real tables, to be quick
SEED = 0
CTF = {  # ours: RELION's, cryoSPARC's, and what stands for a missing column
    "defocus_u_angstrom": ("rlnDefocusU", 1.0, "ctf/df1_A", 1.0, None),
    "defocus_v_angstrom": ("rlnDefocusV", 1.0, "ctf/df2_A", 1.0, None),
    "astigmatism_angle_rad": ("rlnDefocusAngle", np.pi / 180, "ctf/df_angle_rad", 1.0, None),
    "voltage_volts": ("rlnVoltage", 1e3, "ctf/accel_kv", 1e3, None),
    "cs_angstrom": ("rlnSphericalAberration", 1e7, "ctf/cs_mm", 1e7, None),
    "amplitude_contrast": ("rlnAmplitudeContrast", 1.0, "ctf/amp_contrast", 1.0, None),
    "phase_shift_rad": ("rlnPhaseShift", np.pi / 180, "ctf/phase_shift_rad", 1.0, 0.0),
    "b_factor_angstrom2": ("rlnCtfBfactor", 1.0, "ctf/bfactor", 1.0, 0.0),
    "scale": ("rlnCtfScalefactor", 1.0, "ctf/scale", 1.0, 1.0),
    "premultiplied": ("rlnCtfDataAreCtfPremultiplied", 1.0, None, 1.0, 0.0),
}
NUMBERS = {  # what is read of a STAR file
    *(label for label, *_ in CTF.values()), "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst",
    "rlnImagePixelSize", "rlnOpticsGroup", "rlnImageSize",
}  # fmt: skip
VALUES = ["nan", "-nan", "inf", "-999", "999", "0", "''", '""', "abc", "1e30", "-inf", "1,5"]
NEVER = {"nan", "-nan", "inf", "-inf", "-999", "''", '""', "abc", "1e30", "1,5"}
EMPTY = {"''", '""'}
PARTICLES = [
    "relion31.star", "relion31.v2.star", "particles_1k.star", "particles_manual.star",
    "simplecryoem_pyem.star", "relion31.6opticsgroups.star",
]  # fmt: skip


@dataclass
class Variant:
    """A spoilt file: what was done, its content, the particle at fault (from 1), whether anybody can tell."""

    what: str
    content: bytes
    particle: int | None = None
    tells: bool = False


# the twins


def star_as_written(content):
    """Particles of a STAR file as a list of dicts; ValueError, KeyError if they cannot be told."""
    blocks = {}
    for raw_line in content.splitlines():  # as bytes, where only ASCII has spaces
        line, words = raw_line.decode("utf-8"), [word.decode("utf-8") for word in raw_line.split()]
        if line.startswith("data_"):
            name, labels, rows = words[0][5:], [], []
            if name in blocks:
                raise ValueError("a block twice")
            blocks[name] = rows
        elif not words or words[0].startswith("#") or words[0] == "loop_":
            continue
        elif words[0].startswith("_") and not rows:
            labels.append(words[0][1:])
        elif len(set(labels)) < len(labels) or len(words) != len(labels):
            raise ValueError("labels and values do not match")
        else:
            rows.append(dict(zip(labels, ["" if w in ("''", '""') else w for w in words], strict=True)))
    (particles,) = [rows for rows in blocks.values() if rows and "rlnImageName" in rows[0]]
    optics = {int(row["rlnOpticsGroup"]): row for row in blocks.get("optics", [])}
    if optics:
        (only,) = optics if len(optics) == 1 else [None]
        groups = [int(row["rlnOpticsGroup"]) if "rlnOpticsGroup" in row else only for row in particles]
        particles = [row | optics[group] for row, group in zip(particles, groups, strict=True)]
    noise = next(
        (label for label in ("rlnMicrographName", "rlnGroupName", "rlnGroupNumber") if label in particles[0]),
        None,
    )
    found = [_star_particle(row) for row in particles]
    return _in_one(found, [row[noise] if noise else row["rlnImageName"].split("@")[-1] for row in particles])


def _star_particle(row):
    found = {
        name: float(row[label] if default is None else row.get(label, default)) * unit
        for name, (label, unit, _, _, default) in CTF.items()
    }
    size = row.get("rlnImagePixelSize", row.get("rlnPixelSize"))
    if size is None and "rlnDetectorPixelSize" in row and "rlnMagnification" in row:
        size = float(row["rlnDetectorPixelSize"]) * 1e4 / float(row["rlnMagnification"])
    found["pixel_size"] = None if size is None else float(size)
    for end, unit in (("Angst", 1.0), ("", found["pixel_size"] or 1.0)):
        x, y = f"rlnOriginX{end}", f"rlnOriginY{end}"
        if "psi" not in found and all(label in row for label in ("rlnAnglePsi", x, y)):
            found["psi"] = np.exp(1j * np.deg2rad(float(row["rlnAnglePsi"])))
            found["x"], found["y"] = float(row[x]) * unit, float(row[y]) * unit
    if "rlnClassNumber" in row:
        number = float(row["rlnClassNumber"])
        found["class"] = int(number) - 1 if number >= 1 else -1
    return found | {"image": row["rlnImageName"], "optics": int(row.get("rlnOpticsGroup", 1))}


def cs_as_written(content):
    """Particles of a .cs file as a list of dicts."""
    return records_as_written(table_as_written(content))


def table_as_written(content):
    """Records of a .cs file; ValueError if there is more behind them."""
    stream = io.BytesIO(content)
    records = np.load(stream, allow_pickle=False)
    if stream.read():
        raise ValueError("more than the header says")
    return records.astype(records.dtype.newbyteorder("="))


def records_as_written(records):
    """Particles of records as a list of dicts."""
    if len(set(records["uid"])) < len(records) or len(set(records["blob/sign"])) > 1:
        raise ValueError("particles twice, or dark and white ones")
    found = [_cs_particle(records[i], records.dtype.names) for i in range(len(records))]
    if "location/micrograph_uid" in records.dtype.names:
        return _in_one(found, records["location/micrograph_uid"].tolist())
    return _in_one(found, records["blob/path"].tolist())


def _cs_particle(row, names):
    found = {
        name: float(row[field] if default is None or field in names else default) * unit
        for name, (_, _, field, unit, default) in CTF.items()
        if field
    }
    found["pixel_size"] = float(row["blob/psize_A"]) if "blob/psize_A" in names else None
    for kind in ("alignments2D", "alignments3D"):
        if "psi" not in found and f"{kind}/pose" in names and f"{kind}/shift" in names:
            pose = row[f"{kind}/pose"].astype(float)
            matrix = Rotation.from_rotvec(pose).as_matrix().T if kind == "alignments3D" else None
            psi = pose if matrix is None else np.arctan2(matrix[1, 2], -matrix[0, 2])
            found["psi"] = np.exp(1j * psi)
            unit = float(row[f"{kind}/psize_A"]) if f"{kind}/psize_A" in names else 0.0
            x, y = row[f"{kind}/shift"].astype(float) * (unit or found["pixel_size"] or 1.0)
            found["x"], found["y"] = x, y
    if "alignments2D/class" in names:
        found["class"] = int(row["alignments2D/class"])
    name = row["blob/path"].decode() if isinstance(row["blob/path"], bytes) else row["blob/path"]
    image = f"{int(row['blob/idx'])}@{name}"
    optics = int(row["ctf/exp_group_id"]) if "ctf/exp_group_id" in names else 0
    return found | {"image": image, "optics": optics}


def _in_one(particles, noise):
    """Of several pixel sizes the largest, as rescale=True does; groups of noise by their first member."""
    sizes = [p["pixel_size"] for p in particles]
    largest = None if None in sizes else max(sizes)
    return [
        p | {"pixel_size": largest, "noise": noise.index(n)} for p, n in zip(particles, noise, strict=True)
    ]


def observed(stack):
    """The same of a stack."""
    table, groups, classes = stack.metadata, stack.noise_group.tolist(), class_labels(stack)
    found = []
    for i in range(len(stack)):
        one = {name: float(getattr(stack.ctf, name)[i]) for name in CTF}
        one |= {"pixel_size": stack.pixel_size, "noise": groups.index(groups[i])}
        one["optics"] = int(stack.optics_group[i])
        if stack.poses is not None:
            one["psi"] = np.exp(1j * stack.poses.angle_rad[i])
            one["x"], one["y"] = map(float, stack.poses.shift[i])
        if classes is not None:
            one["class"] = int(classes[i])
        if "rlnImageName" in table.columns:
            one["image"] = str(table["rlnImageName"].iloc[i])
        else:
            one["image"] = f"{table['blob/idx'].iloc[i]}@{table['blob/path'].iloc[i]}"
            one.pop("premultiplied")
        found.append(one)
    return found


def difference(found, expected):
    """First difference of two lists of particles in words; empty if they are the same."""
    if len(found) != len(expected):
        return f"{len(found)} particles, expected {len(expected)}"
    for place, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
        if one.keys() != other.keys():
            return f"particle {place}: only one has {sorted(one.keys() ^ other.keys())}"
        for name, value in one.items():
            same = value == other[name]
            if not same and not isinstance(value, str) and None not in (value, other[name]):
                same = abs(value - other[name]) <= 2e-6 * max(abs(other[name]), 0.01)
            if not same:
                return f"particle {place}: {name} is {value}, expected {other[name]}"
    return ""


# reading and judging


def read(path):
    """Particles and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stack = read_particles(path, metadata_only=True, rescale=True)
    other = [str(w.message) for w in said if not issubclass(w.category, ParticleDataWarning)]
    assert not other, f"warnings of others: {other}"
    return observed(stack), {str(w.message) for w in said}


def trouble(variant, path, as_written, before):
    """What is wrong about the outcome of a variant, in words; empty if it is sound."""
    path.write_bytes(variant.content)
    try:
        found, said = read(path)
    except ParticleDataError as error:
        return _trouble_with_error(str(error), variant, path)
    except Exception as error:  # whatever it is, it is what must not be
        return f"{type(error).__name__}: {error}"
    particles, warnings_before = before
    try:
        expected = as_written(variant.content)
    except Exception:  # the twin gives up on anything odd
        expected = particles
    wrong = difference(found, expected)
    if not wrong and variant.tells and difference(found, particles) and not said - warnings_before:
        wrong = "read without a word: " + difference(found, particles)
    return wrong


def _trouble_with_error(said, variant, path):
    if not any(file.name in said for file in path.parent.iterdir()):  # a group's tables lie beside it
        return f"the error does not name the file: {said}"
    if variant.particle is None:
        return ""
    line = rf"(particle|row) {variant.particle}\b"
    return "" if re.search(line, said) else f"the error does not name particle {variant.particle}: {said}"


def judge(variants, path, as_written, before):
    """Lines on all variants whose outcome is not sound."""
    lines = [(variant, trouble(variant, path, as_written, before)) for variant in variants]
    return [f"{variant.what}: {wrong}" for variant, wrong in lines if wrong]


# what is done to STAR files


class Star:
    """Lines of a STAR file, and where in them its blocks, labels and rows are."""

    def __init__(self, text):
        self.lines = text.splitlines()
        self.blocks = []
        for place, line in enumerate(self.lines):
            words = line.split()
            if line.startswith("data_"):
                self.blocks.append({"name": line.strip(), "start": place, "labels": [], "rows": []})
            elif words and words[0] == "loop_":
                self.blocks[-1]["loop"] = place
            elif words and words[0].startswith("_"):
                self.blocks[-1]["labels"].append(place)
            elif words and self.blocks and not words[0].startswith("#"):
                self.blocks[-1]["rows"].append(place)
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            block["stop"] = following["start"] if following else len(self.lines)

    def cut(self, n_rows):
        """The file with the first rows of each block only."""
        gone = {place for block in self.blocks for place in block["rows"][n_rows:]}
        return "\n".join(line for place, line in enumerate(self.lines) if place not in gone) + "\n"

    def edited(self, edits, *, order=None):
        """Bytes of the file with some lines replaced by lists of lines, or in another order."""
        places = range(len(self.lines)) if order is None else order
        lines = [line for place in places for line in edits.get(place, [self.lines[place]])]
        return ("\n".join(lines) + "\n").encode()

    def with_cells(self, block, change):
        """Edits that change the list of cells of every row."""
        return {place: [" ".join(change(self.lines[place].split()))] for place in block["rows"]}


def star_variants(text, rng, n_each):
    """One thing at a time of everything that is done to a STAR file."""
    star = Star(text)
    pick = lambda things: things[rng.integers(len(things))]  # noqa: E731
    for block in star.blocks:
        yield from _whole_blocks(star, block)
        for _ in range(n_each):
            yield from _labels_and_columns(star, block, pick)
            yield from _rows_and_values(star, block, pick)
    if len(star.blocks) == 2:
        first, second = (list(range(block["start"], block["stop"])) for block in star.blocks)
        yield Variant("blocks swapped", star.edited({}, order=[*second, *first]))
    yield from damaged(text.encode(), rng, 4 * n_each)


def _whole_blocks(star, block):
    name, inside = block["name"], range(block["start"], block["stop"])
    yield Variant(f"{name} dropped", star.edited({place: [] for place in inside}))
    yield Variant(f"head of {name} dropped", star.edited({block["start"]: []}), tells=True)
    yield Variant(f"loop_ of {name} dropped", star.edited({block["loop"]: []}))
    yield Variant(f"loop_ of {name} twice", star.edited({block["loop"]: ["loop_", "loop_"]}))
    yield Variant(f"rows of {name} dropped", star.edited({place: [] for place in block["rows"]}), tells=True)
    copy = [star.lines[place] for place in inside]
    last = block["stop"] - 1
    yield Variant(f"{name} twice", star.edited({last: [star.lines[last], *copy]}), tells=True)


def _labels_and_columns(star, block, pick):
    labels = block["labels"]
    one, other = pick(range(len(labels))), pick(range(len(labels)))
    line, other_line = star.lines[labels[one]], star.lines[labels[other]]
    name, other_name = line.split()[0], other_line.split()[0]
    yield Variant(f"label {name} dropped", star.edited({labels[one]: []}), tells=True)
    yield Variant(f"label {name} twice", star.edited({labels[one]: [line, line]}), tells=True)
    without = star.with_cells(block, lambda cells: cells[:one] + cells[one + 1 :])
    yield Variant(f"column {name} dropped", star.edited({labels[one]: []} | without))
    again = star.with_cells(block, lambda cells: [*cells[:one], cells[one], *cells[one:]])
    yield Variant(f"column {name} twice", star.edited({labels[one]: [line, line]} | again), tells=True)
    swapped = {labels[one]: [other_line], labels[other]: [line]}
    yield Variant(f"labels {name} and {other_name} swapped", star.edited(swapped))
    columns = star.with_cells(block, lambda cells: _swapped(cells, one, other))
    yield Variant(f"columns {name} and {other_name} swapped", star.edited(swapped | columns))
    renamed = {labels[one]: [line.replace(name, name + "x", 1)]}
    yield Variant(f"label {name} renamed", star.edited(renamed))


def _swapped(cells, one, other):
    cells = list(cells)
    cells[one], cells[other] = cells[other], cells[one]
    return cells


def _rows_and_values(star, block, pick):
    rows, names = block["rows"], [star.lines[place].split()[0][1:] for place in block["labels"]]
    place, other = pick(rows), pick(rows)
    column, second = pick(range(len(names))), pick(range(len(names)))
    cells, name = star.lines[place].split(), names[column]
    particle = None if "optics" in block["name"] else rows.index(place) + 1
    where = f"{block['name']}, row {rows.index(place) + 1}"
    yield Variant(f"{where} dropped", star.edited({place: []}))
    yield Variant(f"{where} twice", star.edited({place: [star.lines[place]] * 2}), tells=True)
    short = " ".join(cells[:column] + cells[column + 1 :])
    yield Variant(f"{where}: {name} dropped", star.edited({place: [short]}), particle, tells=True)
    long = " ".join([*cells[:column], cells[column], *cells[column:]])
    yield Variant(f"{where}: {name} twice", star.edited({place: [long]}), particle, tells=True)
    mixed = " ".join(_swapped(cells, column, second))
    yield Variant(f"{where}: {name} and {names[second]} swapped", star.edited({place: [mixed]}), particle)
    swapped = star.edited({place: [star.lines[other]], other: [star.lines[place]]})
    yield Variant(f"{where} and row {rows.index(other) + 1} swapped", swapped)
    values = VALUES if name in NUMBERS else [pick(VALUES)]
    for value in [
        pick(values),
        pick(values),
        cells[column].lstrip("-") if cells[column][0] == "-" else "-" + cells[column],
    ]:
        changed = " ".join([*cells[:column], value, *cells[column + 1 :]])
        tells = value in (NEVER if name in NUMBERS else EMPTY if name == "rlnImageName" else ())
        yield Variant(f"{where}: {name} is {value}", star.edited({place: [changed]}), particle, tells)


def damaged(content, rng, n_each):
    """What editors, disks and connections do to any file."""
    text = content.decode()
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "utf-32"):
        yield Variant(f"as {encoding}", text.encode(encoding))
    yield Variant("lines end in CRLF", content.replace(b"\n", b"\r\n"))
    yield Variant("lines end in CR", content.replace(b"\n", b"\r"))
    yield Variant("twice", content + content, tells=True)
    yield Variant("tabs", content.replace(b" ", b"\t"))
    for _ in range(n_each):
        place = int(rng.integers(len(content)))
        yield Variant(f"cut off at byte {place} of {len(content)}", content[:place])
        for byte in (0, 0x80, 0xE9, int(rng.integers(256))):
            spoilt = content[:place] + bytes([byte]) + content[place + 1 :]
            yield Variant(f"byte {place} is {byte:#x}", spoilt)
        yield Variant(f"byte {place} dropped", content[:place] + content[place + 1 :])
        yield Variant(f"512 zeros at byte {place}", content[:place] + bytes(512) + content[place + 512 :])


# what is done to .cs files


def npy(records):
    """Bytes of a .cs file."""
    stream = io.BytesIO()
    np.save(stream, records)
    return stream.getvalue()


def recast(records, name, dtype):
    """The records with another dtype of one field."""
    fields = [
        (n, dtype if n == name else records.dtype[n].base, records.dtype[n].shape)
        for n in records.dtype.names
    ]
    return records.astype(np.dtype(fields))


def cs_variants(records, rng, n_each):
    """One thing at a time of everything that is done to a .cs file."""
    names = list(records.dtype.names)
    pick = lambda things: things[rng.integers(len(things))]  # noqa: E731
    for name in names:
        kept = [n for n in names if n != name]
        yield Variant(f"field {name} dropped", npy(records[kept].copy()))
    yield Variant("fields reversed", npy(_ordered(records, names[::-1])))
    swapped_bytes = records.astype(records.dtype.newbyteorder(">"))
    yield Variant("big-endian", npy(swapped_bytes))
    yield Variant("rows reversed", npy(records[::-1]))
    yield Variant("two dimensions", npy(records.reshape(-1, 1)), tells=True)
    yield Variant("no rows", npy(records[:0]), tells=True)
    yield Variant("one row without a dimension", npy(records[0]), tells=True)
    yield Variant("Fortran order", npy(records).replace(b"'fortran_order': False", b"'fortran_order': True "))
    for _ in range(n_each):
        yield from _fields_and_values(records, pick)
    yield from damaged_table(npy(records), rng, 4 * n_each)


def damaged_table(content, rng, n_each):
    """What disks and connections do to .cs files; most of it to the header, which is text."""
    head = content.index(b"\n") + 1
    for place in [*rng.integers(head, size=n_each), *rng.integers(len(content), size=n_each // 4)]:
        yield Variant(f"cut off at byte {place} of {len(content)}", content[:place])
        for byte in (0, int(rng.integers(256)), ord(rng.choice(list("0123456789<>|fiuSUVOcMb'(),")))):
            spoilt = content[:place] + bytes([byte]) + content[place + 1 :]
            yield Variant(f"byte {place} is {byte:#x} ({content[max(place - 9, 0) : place + 9]!r})", spoilt)
        yield Variant(f"byte {place} dropped", content[:place] + content[place + 1 :])
    yield Variant("twice", content + content, tells=True)


def _ordered(records, names):
    out = np.empty(len(records), dtype=[(name, records.dtype[name]) for name in names])
    for name in names:
        out[name] = records[name]
    return out


def _fields_and_values(records, pick):
    row, other, name = pick(range(len(records))), pick(range(len(records))), pick(records.dtype.names)
    yield Variant(f"row {row + 1} dropped", npy(np.delete(records, row)))
    yield Variant(
        f"row {row + 1} twice", npy(records[[*range(row + 1), *range(row, len(records))]]), tells=True
    )
    uid = records.copy()
    uid["uid"][row] = uid["uid"][row - 1]
    yield Variant(
        f"uid of row {row + 1} is that of {row}", npy(uid), max(row, 1) + 1 if row else len(records)
    )
    order = _swapped(range(len(records)), row, other)
    yield Variant(f"rows {row + 1} and {other + 1} swapped", npy(records[order]))
    for dtype in ("f8", "f2", "i8", "u1", "S4", "U8", "c8", "?", "M8[s]"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                changed = recast(records, name, dtype)
            except (ValueError, TypeError):
                continue
        yield Variant(f"{name} as {dtype}", npy(changed))
    for value in (np.nan, np.inf, -999, 999, 0, 1e30, -1):
        changed = records.copy()
        if changed[name].dtype.kind == "S":
            changed[name][row] = str(value).encode()
        elif changed[name].dtype.kind == "f" or 0 <= value < 2**31:
            changed[name][row] = value
        yield Variant(f"row {row + 1}: {name} is {value}", npy(changed), row + 1, _tells(name, value))
    fields = [(n + "x" if n == name else n, records.dtype[n]) for n in records.dtype.names]
    renamed = records.astype(fields)
    yield Variant(f"{name} renamed", npy(renamed))


def _tells(name, value):
    used = {field for _, _, field, _, _ in CTF.values() if field}
    used |= {"blob/psize_A", "alignments2D/pose", "alignments2D/shift", "alignments3D/psize_A"}
    return name in used and not (abs(value) < 10)


# tests


def star_troubles(folder, name, path, seed, n_each):
    """Variants of a STAR file of particles, and lines on those whose outcome is not sound."""
    text = Star((folder / name).read_text()).cut(N_ROWS)
    path.write_text(text)
    before = read(path)
    assert not difference(before[0], star_as_written(text.encode())), (
        "the twin reads the sound file otherwise"
    )
    variants = list(star_variants(text, np.random.default_rng(seed), n_each))
    return variants, judge(variants, path, star_as_written, before)


def cs_troubles(source, path, seed, n_each):
    """The same of a .cs file."""
    records = np.load(source)[:N_ROWS]
    path.write_bytes(npy(records))
    before = read(path)
    assert not difference(before[0], cs_as_written(npy(records))), "the twin reads the sound file otherwise"
    variants = list(cs_variants(records, np.random.default_rng(seed), n_each))
    return variants, judge(variants, path, cs_as_written, before)


def report(name, variants, lines):
    """What to say of those that failed."""
    return f"{name}: {len(lines)} of {len(variants)} variants\n" + "\n".join(lines)


@pytest.mark.parametrize("name", PARTICLES)
def test_spoilt_star_files(shared_data, tmp_path, name):
    folder = shared_data / "metadata" / "relion"
    variants, lines = star_troubles(folder, name, tmp_path / "spoilt.star", SEED, 1)
    assert len(variants) > 50
    assert not lines, report(name, variants, lines)


@pytest.mark.parametrize(
    "name", ["cryosparc_J2_particles_exported.cs", "t20s_J209/cryosparc_P9_J209_000_particles.cs"]
)
def test_spoilt_cryosparc_tables(shared_data, tmp_path, name):
    source = shared_data / "metadata" / "cryosparc" / name
    variants, lines = cs_troubles(source, tmp_path / "spoilt.cs", SEED, 1)
    assert len(variants) > 60
    assert not lines, report(name, variants, lines)


def test_spoilt_cryosparc_groups(shared_data, tmp_path):
    # The real group refers to two tables; the real table of the same job is parted as cryoSPARC parts it.
    job = shared_data / "metadata" / "cryosparc" / "t20s_J209"
    records = np.load(job / "cryosparc_P9_J209_000_particles.cs")[:N_ROWS]
    group = (job / "P9_J209_particles.csg").read_bytes()
    here = [name for name in records.dtype.names if not name.startswith("blob")]
    passed_on = ["uid", *(name for name in records.dtype.names if name.startswith("blob"))]
    own, other = npy(records[here].copy()), npy(records[::-1][passed_on].copy())
    spoilt, rng = tmp_path / "spoilt.csg", np.random.default_rng(SEED)
    tables = (tmp_path / "cryosparc_P9_J209_005_particles.cs", tmp_path / "P9_J209_passthrough_particles.cs")
    for path, content in zip((spoilt, *tables), (group, own, other), strict=True):
        path.write_bytes(content)
    before = read(spoilt)
    assert not difference(before[0], cs_as_written(npy(records)))

    def joined(_):
        one, more = (table_as_written(path.read_bytes()) for path in tables)
        more = more[[more["uid"].tolist().index(uid) for uid in one["uid"]]]
        fields = {name: table for table in (more, one) for name in table.dtype.names}
        whole = np.empty(len(one), dtype=[(name, table.dtype[name]) for name, table in fields.items()])
        for name, table in fields.items():
            whole[name] = table[name]
        return records_as_written(whole)

    lines = group.decode().splitlines()
    edits = [
        ("dropped", lambda line: []),
        ("twice", lambda line: [line, line]),
        ("indented", lambda line: [" " + line]),
    ]
    variants = [  # one of three edits for each line in turn
        Variant(f"line {i + 1} {what}", "\n".join([*lines[:i], *new(line), *lines[i + 1 :]]).encode())
        for i, line in enumerate(lines)
        for what, new in [edits[i % 3]]
    ]
    variants += damaged(group, rng, 4)
    troubles = judge(variants, spoilt, joined, before)
    for path, content in zip(tables, (own, other), strict=True):
        spoilt.write_bytes(group)
        for variant in damaged_table(content, rng, 8):
            path.write_bytes(variant.content)
            variants.append(Variant(f"{path.name}: {variant.what}", group))
            troubles += judge(variants[-1:], spoilt, joined, before)
        path.write_bytes(content)
    assert len(variants) > 80
    assert not troubles, report("P9_J209_particles.csg", variants, troubles)


OTHERS = [
    "relion/micrographs_ctf.star", "relion/run_it025_optimiser.star",
    "relion/chris-langfield/example_mixed_1.star", "relion/chris-langfield/example_nonconsecutive.star",
    "relion/chris-langfield/example_with_loops.star", "relion/chris-langfield/sample_data_model.star",
    "relion/chris-langfield/single_line_middle_of_multiblock.star",
    "relion/teamtomo_starfile/basic_double_quote.star", "relion/teamtomo_starfile/default_pipeline.star",
    "relion/teamtomo_starfile/loop_single_quote.star", "relion/teamtomo_starfile/one_loop.star",
    "relion/teamtomo_starfile/postprocess.star", "relion/teamtomo_starfile/rln3.1_data_style.star",
    "relion/teamtomo_starfile/relion_tutorial/run_it025_sampling_2D.star",
    "cryosparc/cryosparc-tools_4k_dataset.cs", "cryosparc/t20s_J209/cryosparc_P9_J209_000_volume_map.cs",
    "cryosparc/t20s_J209/cryosparc_P9_J209_005_volume_mask_fsc_auto.cs",
    "cryosparc/t20s_J209/P9_J209_volume.csg",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*last-line-open")
@pytest.mark.parametrize("name", OTHERS)
def test_spoilt_files_of_other_things_are_refused_by_name(shared_data, tmp_path, name):
    source = shared_data / "metadata" / name
    rng, path = np.random.default_rng(SEED), tmp_path / f"spoilt{source.suffix}"
    content = source.read_bytes()
    variants = list(damaged_table(content, rng, 1) if source.suffix == ".cs" else damaged(content, rng, 1))
    for variant in variants:
        path.write_bytes(variant.content)
        with pytest.raises(ParticleDataError, match="spoilt"):
            read_particles(path, metadata_only=True)
            pytest.fail(f"{name}, {variant.what}: read as particles")
