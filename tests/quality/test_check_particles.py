"""Mistakes that show in the images: the right alarm for each, and none where all is well."""

import pickle
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, ParticleStack, check_particles, read_particles, set_memory_limit
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_mrc
from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.particles.screening import look_at
from sklearn_cryoem.quality.checks import centre_above_rim, rows_to_look_at
from sklearn_cryoem.quality.ctf_fit import ctf_fit


def names(stack, **options):
    return [finding.name for finding in check_particles(stack, warn=False, **options)]


@pytest.fixture(scope="module")
def simulated():
    return make_particles("ribosome", 200, box=48, snr=0.1, random_state=0)


def real(shared_data, name="particles_ctf_corrected.star"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParticleDataWarning)
        stack = read_particles(shared_data / "betagal" / name)
    return stack[look_at(stack).measures.blank_lines == 0.0]  # 158 of 2,374 are padded, which is said


# ---------------------------------------------------------------- no false alarm
@pytest.mark.parametrize("snr", [1.0, 0.02])
@pytest.mark.parametrize("phantom", ["ribosome", "ring-11", "rp-cp"])
@pytest.mark.parametrize("messy", [False, True])
def test_simulated_particles_raise_no_alarm(snr, phantom, messy):
    mess = {"max_shift": 30.0, "junk_fraction": 0.3, "noise": "coloured"} if messy else {}
    box = 32 if messy else 64
    stack = make_particles(phantom, 200, box=box, snr=snr, random_state=1, **mess)
    assert names(stack, mask_diameter=0.8 * box * stack.pixel_size) == []


@pytest.mark.parametrize("defocus", [(5e3, 5e3), (10e3, 25e3), (30e3, 30e3)])
def test_no_defocus_of_clear_particles_raises_an_alarm(defocus):
    for snr in (20.0, 1.0):
        stack = make_particles("ring-10", 150, box=64, snr=snr, defocus=defocus, random_state=2)
        assert "ctf-does-not-fit" not in names(stack)


@pytest.mark.filterwarnings("ignore:.*phantom-wraps")
@pytest.mark.parametrize("defocus", [(10e3, 25e3), (20e3, 20e3)])
def test_junk_and_structure_do_not_decide_on_the_ctf(defocus):
    """A small pixel: the particle fills the box, its own structure and the edges of carbon have rings."""
    stack = make_particles(
        "ribosome", 160, box=128, pixel_size=1.5, junk_fraction=0.3, defocus=defocus, random_state=0
    )
    assert names(stack) == []


def test_real_particles_raise_no_alarm(shared_data):
    stack = real(shared_data)
    assert names(stack, mask_diameter=190.0) == []
    for part in (stack[:150], stack[::15], stack.downsample(48), stack.with_ctf(None)):
        assert names(part) == []
    assert names(stack[:1]) == names(stack[:0]) == []


def test_padded_edges_of_real_particles_are_counted(shared_data):
    stack = read_particles(shared_data / "betagal" / "particles_ctf_corrected.star")
    with pytest.warns(ParticleDataWarning, match=r"15\d of 2,374 .* along an edge .*Pick farther") as said:
        check_particles(stack)
    assert [warning.message.name for warning in said] == ["blank-edges"]


# ---------------------------------------------------------------- the right alarm
def test_the_wrong_defocus_of_real_particles_is_seen(shared_data):
    stack = real(shared_data, "Extract/job009/particles.star")
    for part in (stack[:150], stack.downsample(48), stack.invert_contrast()):
        assert "ctf-does-not-fit" in names(part)
    with pytest.warns(ParticleDataWarning, match=r"of about (0\.9|1)\S* um .*Estimate the CTF again"):
        check_particles(stack)


def with_defocus(stack, change):
    u, v = stack.ctf.defocus_u_angstrom, stack.ctf.defocus_v_angstrom
    return stack.with_ctf(replace(stack.ctf, defocus_u_angstrom=change(u), defocus_v_angstrom=change(v)))


def test_double_half_and_negative_defoci_are_seen(shared_data):
    stack = real(shared_data)
    for change in (lambda u: 2.0 * u, lambda u: 0.5 * u, np.negative):
        assert names(with_defocus(stack, change)) == ["ctf-does-not-fit"]
    with pytest.warns(ParticleDataWarning, match=r"of 2,216 .*negative.*Change its sign in the table"):
        check_particles(with_defocus(stack, np.negative))


def test_a_wrong_defocus_of_simulated_particles_is_seen():
    """White noise has no rings: what tells is how spectra differ between defoci."""
    stack = make_particles("ribosome", 240, box=96, snr=1.0, defocus=(5e3, 30e3), random_state=0)
    assert names(stack) == []
    for change in (lambda u: 2.0 * u, lambda u: 0.5 * u, np.negative):
        assert names(with_defocus(stack, change)) == ["ctf-does-not-fit"]


@pytest.mark.parametrize("factor", [0.7, 1.1])
def test_a_wrong_pixel_size_is_seen_and_the_right_one_is_named(shared_data, factor):
    stack = real(shared_data)
    stack = ParticleStack(
        stack.read(), pixel_size=factor * stack.pixel_size, ctf=stack.ctf, noise_group=stack.noise_group
    )
    with pytest.warns(ParticleDataWarning, match=r"Make sure of it and of the voltage") as caught:
        assert [finding.name for finding in check_particles(stack)] == ["ctf-does-not-fit"]
    named = float(re.search(r"replaced by (\S+) A", str(caught[0].message))[1])
    assert named == pytest.approx(3.54, rel=0.05)


def test_defoci_of_other_micrographs_are_seen(shared_data):
    stack = real(shared_data)
    first, last = np.flatnonzero(stack.noise_group == 0), np.flatnonzero(stack.noise_group == 8)
    mean = [np.mean(stack.ctf.defocus_u_angstrom[rows]) for rows in (first, last)]
    for rows in (first, last):
        match = ctf_fit(stack.read(rows), stack.ctf[rows], np.zeros(len(rows), int), stack.pixel_size)
        assert match.given > 8 and match.given > 0.9 * match.best
        assert match.best_defocus_angstrom == pytest.approx(mean[rows is last], abs=600)


def test_a_given_defocus_is_found_again_in_ice():
    rng = np.random.default_rng(0)
    for box, defocus in ((64, 12e3), (96, 20e3)):
        n_images, pixel_size = 120, 3.0
        ctf = CTFTable.constant(
            n_images, defocus_u_angstrom=defocus, defocus_v_angstrom=defocus, astigmatism_angle_rad=0.0,
            voltage_volts=300e3, cs_angstrom=2.7e7, amplitude_contrast=0.1,
        )  # fmt: skip
        frequency = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)) / pixel_size
        transfer = ctf[:1].evaluate(frequency.ravel(), np.zeros(frequency.size)).reshape(frequency.shape)
        ice = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n_images, box, box))) * transfer, s=(box, box))
        images = (ice + rng.normal(size=ice.shape)).astype(np.float32)
        match = ctf_fit(images, ctf, np.zeros(n_images, int), pixel_size)
        assert match.given > 0.9 * match.best > 5
        assert match.best_defocus_angstrom == pytest.approx(defocus, rel=0.04)
        noise = rng.normal(size=ice.shape).astype(np.float32)
        assert ctf_fit(noise, ctf, np.zeros(n_images, int), pixel_size).best < 4


@pytest.mark.parametrize("snr", [0.5, 0.02])
@pytest.mark.parametrize("phantom", ["ribosome", "ring-11", "rp-cp"])
def test_dark_particles_are_seen(snr, phantom):
    stack = make_particles(phantom, 200, box=32, snr=snr, junk_fraction=0.3, random_state=0)
    assert names(stack.invert_contrast()) == ["dark-particles"]


def test_images_that_are_not_normalised_are_seen(simulated):
    images = simulated.read()
    level = ParticleStack(images + 40.0)
    dose = ParticleStack(images * np.linspace(0.5, 2.0, len(images), dtype=np.float32)[:, None, None])
    assert names(level) == names(dose) == ["not-normalised"]
    assert names(level.normalise()) == names(dose.normalise()) == []
    assert names(ParticleStack(3.0 * images)) == []  # one factor for all does no harm
    with pytest.warns(ParticleDataWarning, match=r"mean of 4\d standard deviations .*normalise=True"):
        check_particles(level)


def test_a_background_that_was_cut_away_is_not_judged(simulated):
    outside = np.hypot(*(np.mgrid[:48, :48] - 24)) > 17
    images = simulated.read().copy()
    images[:, outside] = 0.0
    stack = ParticleStack(images, pixel_size=simulated.pixel_size, ctf=simulated.ctf)
    assert names(stack) == []


@pytest.mark.parametrize(
    ("header", "stated", "differs"),
    [(3.54, 3.54, False), (3.54, 1.77, True), (3.54, 3.5401, False), (1.0, 3.54, False), (None, 3.54, False)],
)
def test_pixel_sizes_of_headers_are_compared(tmp_path, simulated, header, stated, differs):
    write_mrc(tmp_path / "a.mrcs", simulated.read(slice(0, 20)), header)
    (tmp_path / "a.star").write_text(
        "data_\nloop_\n_rlnImageName\n_rlnPixelSize\n"
        + "".join(f"{row + 1}@a.mrcs {stated}\n" for row in range(20))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = read_particles(tmp_path / "a.star", ctf=False)
    assert [warning.message.name for warning in caught] == ["pixel-size-differs"] * differs
    assert ("pixel-size-differs" in names(stack)) == differs
    assert ("pixel-size-differs" in names(stack.downsample(24).invert_contrast())) == differs
    if differs:
        assert "a.star" in str(caught[0].message) and "pixel_size=" in str(caught[0].message)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():  # whoever says it knows it
            warnings.simplefilter("error")
            read_particles(tmp_path / "a.star", ctf=False, pixel_size=stated)


@pytest.mark.parametrize(("share", "name"), [(1.0, "box-too-tight"), (0.1, "mask-too-small"), (0.9, None)])
def test_masks_are_compared_with_the_box(simulated, share, name):
    found = names(simulated, mask_diameter=share * 48 * simulated.pixel_size)
    assert found == ([] if name is None else [name])


# ---------------------------------------------------------------- what is looked at, and the names
def test_a_few_images_of_a_few_micrographs_are_looked_at():
    images = np.random.default_rng(0).normal(size=(3000, 8, 8)).astype(np.float32)
    stack = ParticleStack(images, noise_group=np.arange(3000) // 60)
    rows, group = rows_to_look_at(stack)
    assert len(rows) == 400 and len(np.unique(group)) == 10 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.bincount(group), 40)
    assert len(np.unique(stack.noise_group[rows])) == 10
    rows, group = rows_to_look_at(ParticleStack(images, noise_group=np.arange(3000) // 3))
    assert len(rows) == 400 and not group.any() and rows[0] == 0 and rows[-1] == 2999


@pytest.mark.parametrize(("limit", "n_rows"), [("4 GB", 400), ("64 kB", 20), ("200 kB", 25)])
def test_fewer_are_looked_at_where_memory_is_short(limit, n_rows):
    images = np.random.default_rng(0).normal(size=(500, 8, 8)).astype(np.float32)
    set_memory_limit(limit)
    try:
        rows, _ = rows_to_look_at(ParticleStack(images, noise_group=np.arange(500)))
    finally:
        set_memory_limit(None)
    assert len(rows) == n_rows


def test_every_warning_has_a_name_that_survives(simulated):
    with pytest.warns(ParticleDataWarning) as caught:
        findings = check_particles(simulated.invert_contrast())
    assert caught[0].message.name == findings[0].name == "dark-particles"
    assert caught[0].filename == __file__
    assert pickle.loads(pickle.dumps(caught[0].message)).name == "dark-particles"
    assert ParticleDataWarning("no name").name is None


@pytest.mark.parametrize("bad", [0, -1, np.nan])
def test_a_mask_that_cannot_be_is_refused(simulated, bad):
    with pytest.raises(ValueError, match=r"mask_diameter is .* \(the box\)"):
        check_particles(simulated, mask_diameter=bad)


def test_contrast_is_centre_less_rim():
    axis = np.arange(32) - 16
    radius = np.hypot(axis[:, None], axis)
    images = np.stack([3.0 * (radius < 10), -2.0 * (radius < 10)])
    np.testing.assert_allclose(centre_above_rim(images), [3.0, -2.0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_aligner_says_where_its_mask_leaves_no_background(simulated):
    aligner = MAPAligner(2, mask_diameter=48 * simulated.pixel_size, n_batches=2, max_iter=1, random_state=0)
    with pytest.warns(ParticleDataWarning, match=r"MAPAligner: mask_diameter .*\[box-too-tight\]") as caught:
        aligner.fit(simulated[:40])
    assert [w.filename for w in caught if "box-too-tight" in str(w.message)] == [__file__]
