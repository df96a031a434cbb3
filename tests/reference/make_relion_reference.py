"""Make the reference numbers of this folder with RELION's programs; see README.md here.

    python tests/reference/make_relion_reference.py

Needs `relion_project` and `relion_stack_create` on the PATH. Writes relion_ctf.json and relion_poses.npz.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import mrcfile
import numpy as np

HERE = Path(__file__).resolve().parent
BOX, PIXEL_SIZE = 64, 2.0

# kV, mm, amplitude contrast
OPTICS = [(300.0, 2.7, 0.1), (200.0, 1.4, 0.07)]
# optics group, defocus U and V (A), astigmatism angle (deg), phase shift (deg), B-factor (A^2), scale
CTF_CASES = [
    (1, 15000.0, 15000.0, 0.0, 0.0, 0.0, 1.0),
    (1, 18000.0, 9000.0, 25.0, 0.0, 0.0, 1.0),
    (2, 18000.0, 9000.0, -70.0, 60.0, 0.0, 1.0),
    (1, 22000.0, 17000.0, 110.0, 90.0, 50.0, 1.0),
    (2, 12000.0, 11000.0, 40.0, 0.0, 100.0, 0.8),
]
# x, y, z, standard deviation (A), height: an asymmetric particle
BLOBS = [
    (0.0, 0.0, 0.0, 8.0, 1.0),
    (24.0, 6.0, 4.0, 6.0, 1.5),
    (-8.0, -20.0, 10.0, 5.0, 2.0),
    (-18.0, 16.0, -12.0, 4.5, 1.0),
]
# rot, tilt, psi (deg), origin x and y (A)
POSE_CASES = [
    (0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 30.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 6.0, 11.0),
    (0.0, 0.0, 125.0, -7.0, 3.0),
    (20.0, 55.0, 0.0, 0.0, 0.0),
    (20.0, 55.0, -75.0, 5.0, -9.0),
    (-130.0, 100.0, 40.0, 2.5, 4.0),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_ctf(Path(folder))
        write_poses(Path(folder))


def write_ctf(folder: Path) -> None:
    """The CTF itself: the transform of the projection of a single bright voxel at RELION's origin."""
    volume = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    volume[BOX // 2, BOX // 2, BOX // 2] = 1.0
    rows = [
        (0, 0, 0, 0, 0, u, v, angle, phase, b, scale, group)
        for group, u, v, angle, phase, b, scale in CTF_CASES
    ]
    images = project(folder, volume, rows, "--ctf")
    spectrum = np.fft.fft2(np.fft.ifftshift(images, axes=(1, 2)))
    assert np.abs(spectrum.imag).max() < 1e-5, "RELION's origin is not where we think it is"
    ky, kx = np.meshgrid(np.arange(-30, 31), np.arange(0, 31), indexing="ij")
    inside = (np.hypot(kx, ky) < 31) & ((kx > 0) | (ky >= 0))
    kx, ky = kx[inside], ky[inside]
    chosen = np.random.default_rng(0).choice(len(kx), size=79, replace=False)
    kx, ky = np.append(0, kx[chosen]), np.append(0, ky[chosen])
    reference = {
        "relion": version(),
        "box": BOX,
        "pixel_size_angstrom": PIXEL_SIZE,
        "kx": kx.tolist(),
        "ky": ky.tolist(),
        "optics_kv_mm_amplitude_contrast": OPTICS,
        "cases_group_u_v_angle_phase_b_scale": CTF_CASES,
        "ctf": spectrum.real[:, ky, kx].round(5).tolist(),
    }
    (HERE / "relion_ctf.json").write_text(json.dumps(reference).replace("], [", "],\n[") + "\n")


def write_poses(folder: Path) -> None:
    """Projections at given poses, and the same undone by RELION (--apply_transformation)."""
    z, y, x = (np.indices((BOX, BOX, BOX)) - BOX // 2) * PIXEL_SIZE
    volume = np.zeros((BOX, BOX, BOX))
    for px, py, pz, sd, height in BLOBS:
        volume += height * np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2 * sd**2))
    rows = [(*pose, 1e4, 1e4, 0, 0, 0, 1, 1) for pose in POSE_CASES]
    images = project(folder, volume.astype(np.float32), rows)
    run(folder, "relion_stack_create", "--i", "out.star", "--o", "aligned", "--apply_transformation")
    with mrcfile.open(folder / "aligned.mrcs") as mrc:
        aligned = np.array(mrc.data)
    np.savez_compressed(
        HERE / "relion_poses.npz",
        pixel_size_angstrom=PIXEL_SIZE,
        blobs=np.array(BLOBS),
        rot_tilt_psi_deg_origin_angstrom=np.array(POSE_CASES),
        images=images.astype(np.float16),
        aligned_by_relion=aligned.astype(np.float16),
    )


def project(folder: Path, volume: np.ndarray, rows: list[tuple], *options: str) -> np.ndarray:
    """Run relion_project on a STAR file of poses and CTFs; (n, BOX, BOX)."""
    with mrcfile.new(folder / "in.mrc", volume, overwrite=True) as mrc:
        mrc.voxel_size = PIXEL_SIZE
    (folder / "in.star").write_text(star(rows))
    run(folder, "relion_project", "--i", "in.mrc", "--o", "out", "--ang", "in.star",
        "--angpix", str(PIXEL_SIZE), *options)  # fmt: skip
    with mrcfile.open(folder / "out.mrcs") as mrc:
        return np.array(mrc.data)


def star(rows: list[tuple]) -> str:
    optics = ["rlnOpticsGroupName", "rlnOpticsGroup", "rlnVoltage", "rlnSphericalAberration",
              "rlnAmplitudeContrast", "rlnImagePixelSize", "rlnImageSize",
              "rlnImageDimensionality"]  # fmt: skip
    particles = ["rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst",
                 "rlnOriginYAngst", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift",
                 "rlnCtfBfactor", "rlnCtfScalefactor", "rlnOpticsGroup"]  # fmt: skip
    groups = [(f"optics{i}", i, *constants, PIXEL_SIZE, BOX, 2) for i, constants in enumerate(OPTICS, 1)]
    images = [(f"{i:06d}@none.mrcs", *row) for i, row in enumerate(rows, 1)]
    return block("optics", optics, groups) + block("particles", particles, images)


def block(name: str, columns: list[str], rows: list[tuple]) -> str:
    head = "".join(f"_{column} #{i}\n" for i, column in enumerate(columns, 1))
    return f"\ndata_{name}\n\nloop_\n{head}" + "".join(" ".join(map(str, row)) + "\n" for row in rows) + "\n"


def version() -> str:
    output = subprocess.run(["relion_project", "--version"], capture_output=True, text=True, check=False)
    return (output.stdout + output.stderr).strip().splitlines()[0]


def run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main()
