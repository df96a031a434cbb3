"""Every file of the shared test inputs reads, or fails with the reason."""

import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.io import read_mrc, read_particles

NO_PARTICLES = "no block has the column rlnImageName"
ABSENT = "not found in .*images_dir="
# path: (number of particles by its metadata or None, why reading fails or None)
OUTCOMES = {
    "betagal/particles_ctf_corrected.star": (2374, None),
    "betagal/Extract/job009/particles.star": (2374, None),
    "metadata/relion/micrographs_ctf.star": (None, "a list of micrographs"),
    "metadata/relion/particles_1k.star": (1000, ABSENT),
    "metadata/relion/particles_manual.star": (1099, ABSENT),
    "metadata/relion/relion31.6opticsgroups.star": (139, ABSENT),
    "metadata/relion/relion31.star": (5, ABSENT),
    "metadata/relion/relion31.v2.star": (5, ABSENT),
    "metadata/relion/run_it025_optimiser.star": (None, r"optimiser file.*run_it025_data.star"),
    "metadata/relion/simplecryoem_pyem.star": (24, ABSENT),
    "metadata/relion/chris-langfield/example_mixed_1.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/example_mixed_2.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/example_no_loops.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/example_nonconsecutive.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/example_nonconsecutive_2.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/example_with_loops.star": (None, NO_PARTICLES),
    "metadata/relion/chris-langfield/sample_data_model.star": (None, "a model file"),
    "metadata/relion/chris-langfield/single_line_end_of_multiblock.star": (
        None,
        "several blocks hold particles",
    ),
    "metadata/relion/chris-langfield/single_line_middle_of_multiblock.star": (None, "no column rlnDefocusU"),
    "metadata/relion/teamtomo_starfile/basic_double_quote.star": (None, NO_PARTICLES),
    "metadata/relion/teamtomo_starfile/basic_single_quote.star": (None, NO_PARTICLES),
    "metadata/relion/teamtomo_starfile/default_pipeline.star": (None, "a project's pipeline"),
    "metadata/relion/teamtomo_starfile/empty_loop.star": (None, "a list of coordinates"),
    "metadata/relion/teamtomo_starfile/loop_double_quote.star": (None, NO_PARTICLES),
    "metadata/relion/teamtomo_starfile/loop_single_quote.star": (None, NO_PARTICLES),
    "metadata/relion/teamtomo_starfile/one_loop.star": (None, "sub-tomograms"),
    "metadata/relion/teamtomo_starfile/postprocess.star": (None, "a post-processing result"),
    "metadata/relion/teamtomo_starfile/relion_tutorial/run_it025_optimiser_2D.star": (None, "optimiser file"),
    "metadata/relion/teamtomo_starfile/relion_tutorial/run_it025_optimiser_3D.star": (None, "optimiser file"),
    "metadata/relion/teamtomo_starfile/relion_tutorial/run_it025_sampling_2D.star": (None, "a sampling file"),
    "metadata/relion/teamtomo_starfile/relion_tutorial/run_it025_sampling_3D.star": (None, "a sampling file"),
    "metadata/relion/teamtomo_starfile/rln3.1_data_style.star": (None, "several blocks hold particles"),
    "metadata/relion/teamtomo_starfile/single_line_end_of_multiblock.star": (None, "several blocks hold"),
    "metadata/relion/teamtomo_starfile/single_line_middle_of_multiblock.star": (None, "several blocks hold"),
    "metadata/relion/teamtomo_starfile/two_basic_blocks.star": (None, NO_PARTICLES),
    "metadata/relion/teamtomo_starfile/two_single_line_loop_blocks.star": (None, NO_PARTICLES),
    "metadata/cryosparc/cryosparc-tools_4k_dataset.cs": (None, "holds no particle"),
    "metadata/cryosparc/cryosparc_J2_particles_exported.cs": (22, ABSENT),
    "metadata/cryosparc/t20s_J209/P9_J209_particles.csg": (None, "Copy all files of the group"),
    "metadata/cryosparc/t20s_J209/P9_J209_volume.csg": (None, "a group of type volume"),
    "metadata/cryosparc/t20s_J209/cryosparc_P9_J209_000_particles.cs": (11764, ABSENT),
    "metadata/cryosparc/t20s_J209/cryosparc_P9_J209_000_volume_map.cs": (None, "not a table of particles"),
    "metadata/cryosparc/t20s_J209/cryosparc_P9_J209_005_volume_mask_fsc_auto.cs": (
        None,
        "not a table of particles",
    ),
    "metadata/cryosparc/t20s_J209/cryosparc_P9_J209_005_volume_precision.cs": (
        None,
        "not a table of particles",
    ),
    "volumes/3cf3.mrc": (None, "a cube of 66 voxels.*load_volume"),
    "volumes/3j9i.mrc": (None, "a cube of 75 voxels"),
    "volumes/4cr2.mrc": (None, "a cube of 94 voxels"),
    "volumes/4cr2_RP_rough_DERIVED.mrc": (None, "a cube of 94 voxels"),
    "volumes/4v4r.mrc": (None, "a cube of 92 voxels"),
    "volumes/4v4r_50S.mrc": (None, "a cube of 82 voxels"),
    "volumes/ngl_betaGal.mrc": (None, "a cube of 100 voxels"),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*the CTF fits look poor", "ignore:.*rlnMagMat11 are kept, but not used"
)


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_file_reads_or_says_why_not(shared_data, name):
    n_particles, reason = OUTCOMES[name]
    path = shared_data / name
    if reason is None:
        assert len(read_particles(path)) == n_particles
        return
    with pytest.raises(ParticleDataError, match=reason):
        read_particles(path)
    if n_particles is None:
        with pytest.raises(ParticleDataError, match=reason):
            read_particles(path, metadata_only=True)
    elif "6opticsgroups" in name:
        with pytest.raises(ParticleDataError, match=r"several pixel sizes.*2: \[1.24\]"):
            read_particles(path, metadata_only=True)
        parts = [read_particles(path, metadata_only=True, optics_groups=g) for g in ([1, 3, 4, 6], [2, 5])]
        assert sum(len(part) for part in parts) == n_particles
    else:
        assert len(read_particles(path, metadata_only=True)) == n_particles


def test_no_file_is_forgotten(shared_data):
    found = {
        str(path.relative_to(shared_data))
        for path in shared_data.rglob("*")
        if path.suffix in (".star", ".cs", ".csg", ".mrc") and "Movies" not in path.parts
    }
    assert found - set(OUTCOMES) == set()


def test_real_particles(shared_data):
    path = shared_data / "betagal" / "particles_ctf_corrected.star"
    stack = read_particles(path)
    assert (stack.shape, stack.pixel_size, stack.poses) == ((2374, 64, 64), 3.54, None)
    assert set(stack.ctf.voltage_volts) == {200e3}
    assert set(stack.ctf.cs_angstrom) == {1.4e7}
    assert len(np.unique(stack.noise_group)) == 10
    assert stack.check().empty
    moved = read_particles(path, images_dir=shared_data / "betagal" / "Extract" / "job009")
    np.testing.assert_array_equal(moved.read([0, 2373]), stack.read([0, 2373]))


def test_the_user_s_wrong_defocus_is_noticed(shared_data):
    with pytest.warns(ParticleDataWarning, match="estimate the CTF again"):
        read_particles(shared_data / "betagal" / "Extract" / "job009" / "particles.star")


def test_every_real_stack_reads_by_itself(shared_data):
    stacks = sorted((shared_data / "betagal" / "Extract" / "job009" / "Movies").glob("*.mrcs"))
    assert sum(len(read_particles(path)) for path in stacks) == 2374
    assert read_particles(stacks[0]).pixel_size == pytest.approx(3.54)


def test_every_volume_reads_as_a_volume(shared_data):
    for path in (shared_data / "volumes").glob("*.mrc"):
        array, pixel_size = read_mrc(path)
        assert array.shape[0] == array.shape[1] == array.shape[2]
        assert array.dtype == np.float32
        assert pixel_size == pytest.approx(3.54 if "ngl" in path.name else 5.0, abs=0.01)
