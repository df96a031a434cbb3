"""RELION goes on from what we write: our classes, poses, averages and subsets in its own programs."""

import contextlib
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import starfile

from sklearn_cryoem import MAPAligner, read_particles, write_particles
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import read_mrc, write_class_averages
from sklearn_cryoem.particles import Poses, select_classes

K = 4
MASK_ANGSTROM = 320
pytestmark = pytest.mark.skipif(
    shutil.which("relion_refine") is None,
    reason="RELION is not installed: nothing here was compared with it",
)
REFINE = (
    "relion_refine --skip_align --iter 1 --ctf --ctf_corrected_ref --zero_mask --norm --scale --pad 2"
    " --oversampling 0 --tau2_fudge 2 --flatten_solvent --dont_combine_weights_via_disc --pool 30"
    f" --random_seed 1 --particle_diameter {MASK_ANGSTROM}"
)


def relion(command, folder):
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-2000:]}"


def correlation(one, other):
    """Correlation of two stacks image by image, inside the mask."""
    box = one.shape[-1]
    axis = np.arange(box) - box // 2
    inside = np.hypot(axis, axis[:, None]) < 0.35 * box
    return np.array([np.corrcoef(a[inside], b[inside])[0, 1] for a, b in zip(one, other, strict=True)])


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """Particles of four views, astigmatic and shifted, aligned and classified, in files as RELION wants."""
    folder = tmp_path_factory.mktemp("relion")
    stack = make_particles(
        "ribosome", 240, box=40, pixel_size=9.0, snr=0.5, n_views=K, max_shift=25.0, astigmatism=3000.0,
        random_state=0,
    ).normalise()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few passes are enough here
        aligner = MAPAligner(K, n_batches=30, max_iter=4, random_state=0).fit(stack)
    aligned = stack.with_poses(aligner.poses_)
    write_particles(
        aligned, folder / "ours.star", labels=aligner.labels_, posterior=aligner.class_posterior_,
        latent_positions=np.random.default_rng(0).normal(size=(len(stack), 2)), write_images=True,
    )  # fmt: skip
    (folder / "out").mkdir()
    with contextlib.chdir(folder):  # the project's folder, where RELION is started too
        write_class_averages(
            "out/classes.mrcs", aligner.class_averages_, stack.pixel_size,
            sizes=np.bincount(aligner.labels_, minlength=K), resolutions=aligner.class_resolution_,
            columns={"clsRank": np.arange(1, K + 1)},
        )  # fmt: skip
    return folder, aligned, aligner


def refine(folder, star, out):
    (folder / out).mkdir()
    relion(f"{REFINE} --i {star} --ref out/classes_model.star --o {out}/run", folder)
    data = starfile.read(folder / out / "run_it001_data.star")["particles"]
    averages, _ = read_mrc(folder / out / "run_it001_classes.mrcs")
    return data, averages


def test_refine_goes_on_from_our_particles_and_averages_and_agrees_on_the_classes(classified):
    folder, _, aligner = classified
    data, averages = refine(folder, "ours.star", "agree")
    ours = starfile.read(folder / "ours.star")["particles"]
    assert data["rlnImageName"].tolist() == ours["rlnImageName"].tolist(), "RELION sorted them"
    agreement = (data["rlnClassNumber"] == ours["rlnClassNumber"]).mean()
    assert agreement > 0.95, f"RELION puts {agreement:.0%} of the particles into our class"
    found = correlation(averages, aligner.class_averages_)
    assert found.min() > 0.98, f"its averages correlate with ours by {found.round(3)}"


@pytest.mark.parametrize(("angle", "shift"), [(-1.0, 1.0), (1.0, -1.0)])
def test_it_would_not_agree_with_a_wrong_sign(classified, angle, shift):
    folder, aligned, aligner = classified
    name = f"wrong{angle:+.0f}{shift:+.0f}"
    poses = Poses(angle * aligned.poses.angle_rad, shift * aligned.poses.shift)
    write_particles(
        aligned.with_poses(poses), folder / f"{name}.star", labels=aligner.labels_, write_images=True
    )
    data, averages = refine(folder, f"{name}.star", name)
    agreement = (data["rlnClassNumber"] == aligner.labels_ + 1).mean()
    assert agreement < 0.9
    assert correlation(averages, aligner.class_averages_).mean() < 0.94


def test_reconstruct_with_our_poses_gives_our_averages(classified):
    folder, _, aligner = classified
    for number in range(1, K + 1):
        relion(
            f"relion_reconstruct --i ours.star --o class{number}.mrc --class {number} --refdim 2 --ctf "
            "--skip_gridding --maxres 24",
            folder,
        )
    rebuilt = np.stack([np.squeeze(read_mrc(folder / f"class{n}.mrc")[0]) for n in range(1, K + 1)])
    assert correlation(rebuilt, aligner.class_averages_).min() > 0.9


def test_transformed_by_stack_create_the_particles_average_to_our_classes(classified):
    folder, _, aligner = classified
    relion("relion_stack_create --i ours.star --o turned --apply_transformation", folder)
    images, _ = read_mrc(folder / "turned.mrcs")
    averages = np.stack([images[aligner.labels_ == k].mean(axis=0) for k in range(K)])
    own = correlation(averages, aligner.class_averages_)  # the CTF is still in them
    others = correlation(averages, np.roll(aligner.class_averages_, 1, axis=0))
    assert (own > 0.6).all() and (own > others + 0.1).all(), (
        f"{own.round(2)} with own, {others.round(2)} with others"
    )


@pytest.mark.parametrize("version", ["3.1", "3.0"])
def test_star_handler_and_stack_create_take_a_subset(classified, version):
    folder, _, _ = classified
    stack = read_particles(folder / "ours.star")
    chosen = select_classes(stack, None, [0, 2])
    name = f"subset{version[-1]}"
    write_particles(chosen, folder / f"{name}.star", star_version=version)
    relion(f"relion_star_handler --i {name}.star --o {name}_handled.star", folder)  # converts 3.0 itself
    theirs = read_particles(folder / f"{name}_handled.star")
    assert set(theirs.metadata["rlnClassNumber"]) == {1, 3}
    for label in ("rlnImageName", "rlnClassNumber", "rlnGroupName"):
        assert theirs.metadata[label].tolist() == chosen.metadata[label].tolist()
    for label in ("smlLatent1", "smlLatent2", "rlnMaxValueProbDistribution"):
        np.testing.assert_allclose(theirs.metadata[label], chosen.metadata[label], atol=2e-6)
    assert theirs.pixel_size == pytest.approx(9.0)
    np.testing.assert_allclose(theirs.poses.shift, chosen.poses.shift, atol=1e-4)
    np.testing.assert_allclose(theirs.ctf.defocus_u_angstrom, chosen.ctf.defocus_u_angstrom, atol=0.01)
    old = " --ignore_optics" if version == "3.0" else ""
    relion(f"relion_stack_create --i {name}.star --o {name}_stack{old}", folder)
    np.testing.assert_array_equal(read_mrc(folder / f"{name}_stack.mrcs")[0], chosen.read())


def test_convert_star_makes_of_our_old_style_what_we_make_of_it(classified):
    """RELION's own way from 3.0 to 3.1 and ours end in the same table."""
    folder, _, _ = classified
    stack = read_particles(folder / "ours.star")
    write_particles(stack, folder / "old.star", star_version="3.0")
    relion("relion_convert_star --i old.star --o theirs31.star", folder)
    theirs = read_particles(folder / "theirs31.star")
    write_particles(read_particles(folder / "old.star"), folder / "ours31.star", star_version="3.1")
    ours = read_particles(folder / "ours31.star")
    np.testing.assert_allclose(theirs.poses.shift, ours.poses.shift, atol=1e-4)
    np.testing.assert_allclose(theirs.poses.angle_rad, ours.poses.angle_rad, atol=1e-6)
    np.testing.assert_allclose(theirs.ctf.defocus_v_angstrom, ours.ctf.defocus_v_angstrom, atol=0.01)
    assert theirs.optics_group.tolist() == ours.optics_group.tolist()
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize"):
        np.testing.assert_allclose(theirs.optics[label], ours.optics[label], rtol=1e-5)


def test_relion_reads_the_list_of_classes(classified):
    """`relion_refine --ref` above reads the images; this the values beside them."""
    folder, _, aligner = classified
    done = subprocess.run(
        "relion_star_printtable out/classes_model.star data_model_classes rlnReferenceImage "
        "rlnClassDistribution rlnEstimatedResolution".split(),
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split() for line in done.stdout.strip().splitlines()]
    assert [row[0] for row in rows] == [f"{number:06d}@out/classes.mrcs" for number in range(1, K + 1)]
    np.testing.assert_allclose([float(row[1]) for row in rows], np.bincount(aligner.labels_) / 240, atol=1e-6)
    np.testing.assert_allclose([float(row[2]) for row in rows], aligner.class_resolution_, atol=1e-3)
