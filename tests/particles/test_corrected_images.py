"""Images that come phase-flipped, or multiplied by their CTF: what is left in them is used."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem import CTFTable, MAPAligner, ParticleStack, read_particles, write_particles
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.io import write_mrc
from sklearn_cryoem.particles import concatenate
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import fourier_features, half_plane, images_from_features

KINDS = {"phase_flipped": np.sign, "premultiplied": lambda ctf: ctf}
LABELS = {"phase_flipped": "rlnCtfDataArePhaseFlipped", "premultiplied": "rlnCtfDataAreCtfPremultiplied"}

UNUSUAL = "ignore:.*the astigmatism.*:sklearn_cryoem._core.validation.ParticleDataWarning"


def with_flags(ctf, **flags):
    values = {name: getattr(ctf, name) for name in ctf.__dataclass_fields__}
    return CTFTable(**{**values, **{name: np.full(len(ctf), float(flag)) for name, flag in flags.items()}})


def corrected(stack, kind):
    """Images of a stack as a program writes them that flips phases or multiplies by the CTF."""
    plane = half_plane(stack.box)
    ctf = stack.ctf.evaluate(plane.radius / (stack.box * stack.pixel_size), plane.azimuth)
    images = images_from_features(fourier_features(stack.read(), plane) * KINDS[kind](ctf), plane)
    return ParticleStack(
        images, pixel_size=stack.pixel_size, ctf=with_flags(stack.ctf, **{kind: 1}), poses=stack.poses
    )


@pytest.fixture(scope="module")
def one_view():
    """Noise-free images of one view, turned, with strong and varied astigmatism."""
    stack = make_particles(
        "ribosome", 60, box=48, snr=None, n_views=1, astigmatism=8e3, defocus=(2e4, 4e4), random_state=0
    )
    return aligned_to_truth(stack)


def misfit(stack):
    """Share of the power that one common image, seen through each CTF, leaves unexplained."""
    blocks = FeatureBlocks(stack, half_plane(48, 20))
    block = blocks.load(0, blocks.layout.n_shells)
    full = block.norm[:, blocks.layout.norm_index].astype(float)
    common = block.data.sum(axis=0) / full.sum(axis=0)
    return 1.0 - (2 * block.data * common - full * common**2).sum() / block.power.sum()


def test_what_is_left_in_the_image_is_evaluated(one_view):
    frequency, azimuth = np.linspace(0, 0.1, 50), np.linspace(-1.5, 1.5, 50)
    plain = one_view.ctf[:4]
    ctf = plain.evaluate(frequency, azimuth)
    for flags, expected in [
        ({"phase_flipped": 1}, np.abs(ctf)),
        ({"premultiplied": 1}, ctf**2),
        ({"phase_flipped": 1, "premultiplied": 1}, ctf**2),
    ]:
        np.testing.assert_array_equal(with_flags(plain, **flags).evaluate(frequency, azimuth), expected)
    mixed = with_flags(plain, phase_flipped=0)
    mixed = CTFTable(
        **{name: getattr(mixed, name) for name in mixed.__dataclass_fields__ if name != "phase_flipped"},
        phase_flipped=[0, 1, 0, 1],
    )
    values = mixed.evaluate(frequency, azimuth)
    np.testing.assert_array_equal(values[::2], ctf[::2])
    np.testing.assert_array_equal(values[1::2], np.abs(ctf[1::2]))
    assert "2 phase-flipped" in repr(mixed) and "all multiplied" in repr(with_flags(plain, premultiplied=1))
    np.testing.assert_array_equal(mixed[1:].phase_flipped, [1, 0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_corrected_images_of_a_view_are_one_through_what_is_left_of_the_ctf(one_view, kind):
    images = corrected(one_view, kind)
    assert misfit(images) < 0.03
    assert misfit(images.with_ctf(one_view.ctf)) > 5 * misfit(images)  # as if nothing had been done


def test_corrected_images_fall_into_the_classes_of_the_original_ones():
    how = {"snr": 0.5, "n_views": 3, "in_plane": False, "defocus": (15e3, 25e3), "random_state": 0}
    stack = make_particles("ribosome", 150, box=32, **how)
    aligner = MAPAligner(3, n_batches=3, max_iter=2, tol=10.0, random_state=0)
    labels = aligner.fit(stack).labels_
    for kind in KINDS:
        assert adjusted_rand_score(labels, aligner.fit(corrected(stack, kind)).labels_) > 0.9


def test_flags_are_zero_or_one(one_view):
    with pytest.raises(ValueError, match=r"premultiplied holds values other than 0 and 1\. Give 1 for"):
        with_flags(one_view.ctf, premultiplied=2)


# ------------------------------------------------------------------------------------ files
@pytest.fixture
def star(tmp_path, one_view):
    """Function that writes corrected images with their flag in the optics table; returns the file."""

    def write(kind):
        images = corrected(one_view, kind)
        write_mrc(tmp_path / "a.mrcs", images.read(), images.pixel_size)
        bare = read_particles(tmp_path / "a.mrcs").with_ctf(images.ctf).with_poses(images.poses)
        write_particles(bare._replace(metadata=None), tmp_path / "x.star")
        return tmp_path / "x.star"

    return write


@pytest.mark.filterwarnings(UNUSUAL)
@pytest.mark.parametrize("kind", KINDS)
def test_the_flag_is_read_from_the_optics_table_and_written_there(star, kind, tmp_path):
    path = star(kind)
    optics = path.read_text().split("data_particles")[0]
    assert LABELS[kind] in optics and sum(label in optics for label in LABELS.values()) == 1
    stack = read_particles(path)
    assert set(getattr(stack.ctf, kind)) == {1.0} and misfit(stack) < 0.03
    for version in ("3.0", "3.1"):
        write_particles(stack, tmp_path / "again.star", star_version=version, overwrite=True)
        assert set(getattr(read_particles(tmp_path / "again.star").ctf, kind)) == {1.0}
    plain = stack.with_ctf(with_flags(stack.ctf, **{kind: 0}))
    parts = [part._replace(optics=None, metadata=None)[:20] for part in (stack, plain)]
    write_particles(concatenate(parts), tmp_path / "joined.star")  # optics groups are made anew
    assert getattr(read_particles(tmp_path / "joined.star").ctf, kind).tolist() == [1.0] * 20 + [0.0] * 20


@pytest.mark.filterwarnings(UNUSUAL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_cryosparc_cannot_say_it_and_is_refused(star, kind, tmp_path):
    stack = read_particles(star(kind))
    with pytest.raises(ParticleDataError, match=r"which a .cs file cannot say.*Write a .star file"):
        write_particles(stack, tmp_path / "x.cs")


@pytest.mark.filterwarnings(UNUSUAL)
def test_a_flag_that_is_neither_is_refused(star):
    path = star("phase_flipped")
    stack = read_particles(path)
    optics = stack.optics.assign(rlnCtfDataArePhaseFlipped=0.5)
    write_particles(stack.with_ctf(None)._replace(optics=optics), path, overwrite=True)
    with pytest.raises(ParticleDataError, match=r"phase-flipped images is neither 0 nor 1.*Correct it"):
        read_particles(path)
    assert read_particles(path, ctf=False).ctf is None
