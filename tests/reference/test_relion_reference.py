"""Our CTF, projections and poses against numbers that RELION made; see README.md here."""

import json
from pathlib import Path

import numpy as np
import pytest

from sklearn_cryoem.datasets import project, volume_of_blobs
from sklearn_cryoem.physics.ctf import contrast_transfer
from sklearn_cryoem.physics.rotation import aligned_images

HERE = Path(__file__).resolve().parent
CTF = json.loads((HERE / "relion_ctf.json").read_text())


@pytest.mark.parametrize("case", range(len(CTF["ctf"])))
def test_ctf_is_relions(case):
    group, u, v, angle, phase, b_factor, scale = CTF["cases_group_u_v_angle_phase_b_scale"][case]
    kilovolts, cs_mm, amplitude_contrast = CTF["optics_kv_mm_amplitude_contrast"][group - 1]
    kx, ky = np.array(CTF["kx"]), np.array(CTF["ky"])
    ours = contrast_transfer(
        np.hypot(kx, ky) / (CTF["box"] * CTF["pixel_size_angstrom"]),
        np.arctan2(ky, kx),
        defocus_u_angstrom=u,
        defocus_v_angstrom=v,
        astigmatism_angle_rad=np.radians(angle),
        voltage_volts=kilovolts * 1e3,
        cs_angstrom=cs_mm * 1e7,
        amplitude_contrast=amplitude_contrast,
        phase_shift_rad=np.radians(phase),
        b_factor_angstrom2=b_factor,
        scale=scale,
    )
    np.testing.assert_allclose(ours[0], CTF["ctf"][case], atol=2.5e-4)


@pytest.fixture(scope="module")
def poses():
    with np.load(HERE / "relion_poses.npz") as file:
        data = {name: file[name].astype(np.float32) for name in file.files}
    data["rot"], data["tilt"], data["psi"] = np.radians(data["rot_tilt_psi_deg_origin_angstrom"][:, :3].T)
    data["shift_px"] = data["rot_tilt_psi_deg_origin_angstrom"][:, 3:] / data["pixel_size_angstrom"]
    return data


def correlation(one, other):
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)])


def test_projections_are_relions(poses):
    pixel_size = float(poses["pixel_size_angstrom"])
    volume = volume_of_blobs(poses["blobs"], 64, pixel_size)
    ours = project(volume, poses["rot"], poses["tilt"], poses["psi"], poses["shift_px"])
    assert correlation(ours, poses["images"]).min() > 0.9998
    # RELION adds voxels up, we integrate in Angstrom; its mean is not 0
    theirs = poses["images"] * pixel_size
    theirs -= theirs.mean(axis=(1, 2), keepdims=True)
    scale = (ours * theirs).sum(axis=(1, 2)) / (ours**2).sum(axis=(1, 2))
    np.testing.assert_allclose(scale, 1.0, atol=0.03)


def test_alignment_undoes_relions_poses(poses):
    aligned = aligned_images(poses["images"], poses["psi"], poses["shift_px"])
    assert correlation(aligned, poses["aligned_by_relion"]).min() > 0.9998
    # images 0 to 3 show one view, 4 and 5 another
    for first, others in [(0, [1, 2, 3]), (4, [5])]:
        target = np.broadcast_to(poses["images"][first], (len(others), 64, 64))
        assert correlation(aligned[others], target).min() > 0.9997


@pytest.mark.parametrize(("angle_sign", "shift_sign"), [(-1, 1), (1, -1), (-1, -1)])
def test_the_comparison_would_notice_a_wrong_sign(poses, angle_sign, shift_sign):
    wrong = aligned_images(poses["images"], angle_sign * poses["psi"], shift_sign * poses["shift_px"])
    both = [3, 5, 6]  # turned and shifted
    assert correlation(wrong[both], poses["aligned_by_relion"][both]).max() < 0.9
