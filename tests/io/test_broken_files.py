"""Broken files: each is refused by an error of ours that names the file and says what to do."""

import io
import struct
import warnings

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import recfunctions

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_particles

STAR = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 opticsGroup1 300.000000 2.700000 0.100000 2.000000 8 2


# version 30001

data_particles

loop_
_rlnCoordinateX #1
_rlnImageName #2
_rlnMicrographName #3
_rlnOpticsGroup #4
_rlnDefocusU #5
_rlnDefocusV #6
_rlnDefocusAngle #7
_rlnAnglePsi #8
_rlnOriginXAngst #9
_rlnOriginYAngst #10
101.5 000001@a.mrcs mic1.mrc 1 15000.5 14800.25 20.5 -12.0 1.5 -2.5
102.5 000002@a.mrcs mic1.mrc 1 15010.5 14810.25 21.5 33.0 0.5 2.0
103.5 000003@a.mrcs mic2.mrc 1 15020.5 14820.25 22.5 171.0 -1.5 0.0
104.5 000004@a.mrcs mic2.mrc 1 15030.5 14830.25 23.5 90.0 4.5 -0.5
"""
ROW = "102.5 000002@a.mrcs mic1.mrc 1 15010.5 14810.25 21.5 33.0 0.5 2.0"
OPTICS = "1 opticsGroup1 300.000000 2.700000 0.100000 2.000000 8 2"
CUT_OFF = r"a file that was cut off while being written must be written again\."
AGAIN = r"Copy or (export|extract) it again"
FIELDS = [
    ("uid", "<u8"), ("blob/path", "S16"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"),
    ("alignments2D/pose", "<f4"), ("alignments2D/shift", "<f4", (2,)),
]  # fmt: skip


def images():
    return np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound stack of four images."""
    with mrcfile.new(tmp_path / "a.mrcs") as mrc:
        mrc.set_data(images())
        mrc.set_image_stack()
        mrc.voxel_size = 2.0
    return tmp_path


def records(**changed):
    table = np.zeros(4, dtype=FIELDS)
    table["uid"], table["blob/path"], table["blob/idx"] = np.arange(7, 11), b">a.mrcs", np.arange(4)
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 8, 2.0, 1.0
    table["ctf/df1_A"], table["ctf/df2_A"], table["ctf/accel_kv"] = 15e3, 14e3, 300.0
    table["ctf/cs_mm"], table["ctf/amp_contrast"] = 2.7, 0.1
    for name, (row, value) in changed.items():
        table[name.replace("__", "/")][row] = value
    return table


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def without(*names):
    kept = [name for name in records().dtype.names if name not in names]
    return npy(recfunctions.repack_fields(records()[kept]))


def header(**words):
    """The sound stack with words of its header changed, by their place."""

    def change(content):
        for place, value in words.items():
            struct.pack_into("<i", content, 4 * int(place[1:]), value)
        return bytes(content)

    return change


def star(old, new, count=1):
    return STAR.replace(old, new, count)


# Each: name of the file, its content, and what the error says after the name of the file.
BROKEN = {
    # ------------------------------------------------ tables of RELION
    "nothing": ("x.star", "", r"the file is empty\. Copy or export it again"),
    "spaces": ("x.star", " \n \n", r"no data_ block in it.*Give a particles.star"),
    "a web page": ("x.star", "<html><body>404</body></html>", r"but a web page.*Download the file again"),
    "zeros": ("x.star", b"\0" * 5000, r"no data_ block in it.*Give a"),
    "UTF-16": ("x.star", STAR.encode("utf-16"), r"not a STAR file, but text in UTF-16. Save it as"),
    "Latin-1": (
        "x.star",
        star("mic1", "mic\xe9").encode("latin-1"),
        r"(?i)row 1 is no utf-8 text.*save it as UTF-8",
    ),
    "cut off in a row": ("x.star", STAR[: STAR.index("2.0\n103") - 30], r"rlnImageName is missing.*cut off"),
    "cut off in a label": ("x.star", STAR[: STAR.index("nDefocusV #6")], r"(no particle|cannot be parsed)"),
    "cut off in the optics": (
        "x.star",
        STAR[: STAR.index("2.700000")],
        r"(no block has|cannot be parsed).*\.",
    ),
    "a value lost": ("x.star", star(" 15010.5", ""), r"rlnImageName is missing. Repair that row"),
    "a value too many": ("x.star", star(ROW, ROW + " 7"), CUT_OFF),
    "a space in a name": ("x.star", star("000002@a.mrcs", "000002@a b.mrcs"), CUT_OFF),
    "an open quote": ("x.star", star("mic1.mrc", '"mic1.mrc'), CUT_OFF),
    "an optics value lost": (
        "x.star",
        star(" 2.700000", ""),
        r"cannot be parsed.*7 values for 8 labels.*Look for a row",
    ),
    "a label twice": (
        "x.star",
        star("_rlnDefocusV #6", "_rlnDefocusU #6"),
        r"block data_particles: label rlnDefocusU is there twice \(lines 2\d and 2\d\)\. Remove one",
    ),
    "a label lost": ("x.star", star("_rlnDefocusV #6\n", ""), CUT_OFF),
    "no loop_": (
        "x.star",
        STAR.replace("loop_\n", ""),
        r"(cannot be parsed|no block has|Repair that value|Give every optics group)",
    ),
    "decimal commas": ("x.star", star("15010.5", "15010,5"), r"'15010,5', not a number. Repair that value"),
    "merge conflict": ("x.star", star(ROW, f"<<<<<<< HEAD\n{ROW}"), r"is missing or not a number. Repair"),
    "a word for a defocus": (
        "x.star",
        star("15010.5", "none"),
        r"rlnDefocusU is 'none', not a number. Repair",
    ),
    "an infinite defocus": (
        "x.star",
        star("15010.5", "inf"),
        r"is missing|defocus U is inf.*Estimate the CTF",
    ),
    "defocus in um": ("x.star", star("15010.5", "-1.5"), r"defocus U is -1.5 A.*Estimate the CTF again"),
    "a huge defocus": ("x.star", star("15010.5", "1e40"), r"defocus U is 1e\+40 A, expected.*Estimate"),
    "voltage in volts": (
        "x.star",
        star("300.000000", "300000"),
        r"the voltage is 300000 kV, expected 10 to 3,000 kV.*Correct it",
    ),
    "voltage 0": ("x.star", star("300.000000", "0"), r"the voltage is 0 kV, expected 10 to 3,000 kV"),
    "per cent": (
        "x.star",
        star("0.100000", "10"),
        r"amplitude contrast is 10, expected 0 to 1, a fraction.*Correct it",
    ),
    "no pixel size": ("x.star", star("2.000000", "0"), r"the pixel size is 0 A, expected.*pixel_size="),
    "pixel size -": ("x.star", star("2.000000", "-2"), r"the pixel size is -2 A, expected.*Correct it"),
    "pixel size nan": ("x.star", star("2.000000", "nan"), r"the pixel size is missing.*Correct it"),
    "another box": (
        "x.star",
        star("2.000000 8 2", "2.000000 9 2"),
        r"wrong box: .*the metadata say 9.*Use the",
    ),
    "sub-tomograms": ("x.star", star(" 8 2\n", " 8 3\n"), r"sub-tomograms \(3-D\).*Project them"),
    "index 0": ("x.star", star("000002@", "000000@"), r"expected number@file, from 1. Correct the name"),
    "index -1": ("x.star", star("000002@", "-1@"), r"expected number@file, from 1. Correct the name"),
    "index 1.5": ("x.star", star("000002@", "1.5@"), r"expected number@file, from 1. Correct the name"),
    "index too large": ("x.star", star("000002@", "000005@"), r"its file holds 4 images. Use the stack"),
    "index huge": ("x.star", star("000002@", "1e300@"), r"(expected number@file|does not exist).*"),
    "no stack": ("x.star", star("000002@a.mrcs", "000002@"), r"(not found|not a).*"),
    "a folder for a stack": ("x.star", star("000002@a.mrcs", "000002@."), r"not found .*images_dir="),
    "another stack": ("x.star", star("000002@a.mrcs", "000002@b.mrcs"), r"b.mrcs not found .*images_dir="),
    "optics group 7": (
        "x.star",
        star("mic1.mrc 1 15010", "mic1.mrc 7 15010"),
        r"optics group 7 .*Add its row",
    ),
    "optics group x": (
        "x.star",
        star("mic1.mrc 1 15010", "mic1.mrc x 15010"),
        r"rlnOpticsGroup is missing or not",
    ),
    "optics twice": ("x.star", star(OPTICS, f"{OPTICS}\n{OPTICS}"), r"Give every optics group one row"),
    "no angle": (
        "x.star",
        star(" 33.0 ", " nan "),
        r"an in-plane angle or a shift is missing \(NaN\)\. Repair or drop",
    ),
    "an infinite shift": (
        "x.star",
        star(" 0.5 2.0", " inf 2.0"),
        r"a shift is missing .*Repair or drop the row",
    ),
    # ------------------------------------------------ tables of cryoSPARC
    "an empty table": ("x.cs", b"", rf"the file is empty\. {AGAIN}"),
    "text": ("x.cs", b"hello", r"not a cryoSPARC table, but plain text. Give the file"),
    "a table cut off": ("x.cs", npy(records())[:-20], rf"cannot be read as a cryoSPARC table.*{AGAIN}"),
    "a header cut off": ("x.cs", npy(records())[:40], rf"cannot be read as a cryoSPARC table.*{AGAIN}"),
    "a damaged header": ("x.cs", npy(records()).replace(b"'descr'", b"(descr("), rf"cannot be read.*{AGAIN}"),
    "objects": ("x.cs", npy(np.array([{}, 1], dtype=object)), rf"cannot be read.*{AGAIN}"),
    "an array": ("x.cs", npy(np.zeros((3, 3))), r"an array without named fields.*export it again"),
    "compressed": ("x.cs", b"\x94CSDAT" + b"0" * 50, r"a compressed cryoSPARC stream. Save it in the numpy"),
    "no rows": ("x.cs", npy(records()[:0]), r"holds no particle. Check the job"),
    "no images": ("x.cs", without("blob/path", "blob/idx"), r"no field blob/path.*Pass passthrough="),
    "no CTF": ("x.cs", without("ctf/df1_A"), r"no field ctf/df1_A. Pass passthrough="),
    "a name of bytes": (
        "x.cs",
        npy(records(blob__path=(1, b"\xff\xfe"))),
        rf"blob/path is not UTF-8.*{AGAIN}",
    ),
    "dark and white": (
        "x.cs",
        npy(records(blob__sign=(1, -1))),
        r"blob/sign is \[-1.0, 1.0\].*Read them apart",
    ),
    "row nan": ("x.cs", npy(records(ctf__df1_A=(1, np.nan))), r"defocus_u_angstrom is missing.*Estimate"),
    "index beyond": ("x.cs", npy(records(blob__idx=(1, 9))), r"its file holds 4 images. Use the stack"),
    "wrong shape": (
        "x.cs",
        npy(records(blob__shape=(1, 9))),
        r"wrong box: .*the metadata say 9. Use the stack",
    ),
    "pixel size 0": (
        "x.cs",
        npy(records(blob__psize_A=(1, 0))),
        r"the pixel size is 0.*Correct it in the file",
    ),
    "shift nan": ("x.cs", npy(records(alignments2D__shift=(1, np.nan))), r"(shift|pose).*(Repair|Drop|drop)"),
    "a group of nothing": (
        "x.csg",
        "created: now\n",
        r"no cryoSPARC group, not of particles. Give the group",
    ),
    # ------------------------------------------------ stacks
    "an empty stack": ("a.mrcs", b"", r"the file is empty\. Copy or export it again"),
    "half a header": (
        "a.mrcs",
        lambda content: bytes(content[:500]),
        r"only 500 bytes long.*Copy or extract",
    ),
    "no pixels": ("a.mrcs", lambda content: bytes(content[:1024]), r"truncated.*Copy or extract that stack"),
    "pixels cut off": (
        "a.mrcs",
        lambda content: bytes(content[:-300]),
        r"truncated.*Copy or extract that stack",
    ),
    "a picture": (
        "a.mrcs",
        b"\x89PNG\r\n\x1a\n" + b"7" * 2000,
        r"not an MRC file, but a PNG picture. Give the file",
    ),
    "gzipped": ("a.mrcs", b"\x1f\x8b" + b"0" * 2000, r"compressed with gzip. Uncompress it"),
    "complex numbers": ("a.mrcs", header(w3=4), r"MRC mode 4 \(complex numbers.*expected.*Convert the file"),
    "no mode": ("a.mrcs", header(w3=77), r"MRC mode 77 \(no mode.*expected.*Convert the file"),
    "not square": ("a.mrcs", header(w0=4, w1=16), r"images of 4 x 16 pixels.*extract the particles"),
    "negative size": ("a.mrcs", header(w0=-8, w1=-8), r"images of -8 x -8 pixels.*expected square"),
    "many images": ("a.mrcs", header(w2=2**30), r"truncated: its header promises 1073741824 images.*Copy or"),
    "a long header": ("a.mrcs", header(w23=10**8), r"truncated.*Copy or extract that stack again"),
    "a negative header": ("a.mrcs", header(w23=-5), r"expected square particle images"),
}


def place(folder, name, content):
    path = folder / name
    if callable(content):
        content = content(bytearray(path.read_bytes()))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_sound_files_read(folder):
    star_path, cs_path = place(folder, "x.star", STAR), place(folder, "x.cs", npy(records()))
    for path in (star_path, cs_path, folder / "a.mrcs"):
        np.testing.assert_array_equal(read_particles(path).read(), images())


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_by_name_with_a_remedy(case, folder):
    name, content, message = BROKEN[case]
    path = place(folder, name, content)
    with pytest.raises(ParticleDataError) as caught:
        stack = read_particles(path)
        stack.read()
    text = str(caught.value)
    assert str(path) in text and text.rstrip().endswith("."), text
    with pytest.raises(ParticleDataError, match=rf"(?s){message}"):
        raise caught.value


def test_there_are_as_many_as_promised():
    assert len(BROKEN) >= 40


# ------------------------------------------------------------------------------------ at random
def bytes_of(name, folder):
    return {"x.star": STAR.encode(), "x.cs": npy(records()), "a.mrcs": (folder / "a.mrcs").read_bytes()}[name]


PIECES = [
    b"nan", b"inf", b"-1", b"1e400", b'"', b"'", b"#", b"\n", b"\r\n", b"loop_\n", b"data_x\n", b"_rlnX\n",
    b"@", b"\x00", b"\xff\xfe", b"9" * 25, b"<NA>", b"None", b" ", b"\t",
]  # fmt: skip
edits = st.lists(
    st.tuples(
        st.sampled_from(["cut", "remove", "insert", "overwrite", "repeat"]),
        st.floats(0, 1), st.integers(1, 40), st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def edited(content, changes):
    for kind, where, length, piece in changes:
        start = int(where * len(content))
        stop = start + length
        if kind == "cut":
            content = content[:start]
        elif kind == "remove":
            content = content[:start] + content[stop:]
        elif kind == "insert":
            content = content[:start] + piece + content[start:]
        elif kind == "overwrite":
            content = content[:start] + piece + content[start + len(piece) :]
        else:
            content = content[:start] + content[start:stop] * 2 + content[stop:]
    return content


@pytest.mark.parametrize("name", ["x.star", "x.cs", "a.mrcs"])
@settings(
    max_examples=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(changes=edits)
def test_whatever_happens_to_a_file_it_reads_soundly_or_is_refused(name, changes, folder, sound):
    path = place(folder, name, edited(sound[name], changes))
    if name != "a.mrcs":
        place(folder, "a.mrcs", sound["a.mrcs"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ParticleDataWarning)
            stack = read_particles(path)
        pixels = stack.read()
    except ParticleDataError as error:
        assert str(folder) in str(error) and str(error).rstrip().endswith("."), str(error)
        return
    # what is read is what the table says: the pixels of each image that it names, and numbers that can be
    if name == "x.star":
        frames = [int(float(text.partition("@")[0])) - 1 for text in stack.metadata["rlnImageName"]]
    else:
        frames = stack.metadata["blob/idx"] if name == "x.cs" else None
    if frames is not None:
        np.testing.assert_array_equal(pixels, images()[np.asarray(frames)])
        assert ((stack.ctf.defocus_u_angstrom >= 0) & (stack.ctf.defocus_u_angstrom <= 2e5)).all()
    assert np.isfinite(pixels).all() and pixels.ndim == 3 and len(pixels) == len(stack) > 0
    assert stack.pixel_size is None or 0 < stack.pixel_size < np.inf
    assert stack.poses is None or np.isfinite(stack.poses.shift).all()


@pytest.fixture
def sound(folder):
    return {name: bytes_of(name, folder) for name in ("x.star", "x.cs", "a.mrcs")}
