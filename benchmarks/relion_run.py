"""RELION as a peer: find it, and run its 2-D classification with its costs measured, or take a stored run.

A run that was killed goes on from its last iteration where it is asked for again with ``reuse``.
"""

import hashlib
import json
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
from measured import measured

from sklearn_cryoem import ParticleStack, read_particles, write_particles
from sklearn_cryoem.particles import Poses

FIRST_WITH_VDAM = 4  # major version
COSTS = "costs.json"


class Relion(NamedTuple):
    """A build of `relion_refine`."""

    path: str
    version: str
    has_vdam: bool


def find_relion(path=None):
    """Return the build at `path`, or the one that the shell would find."""
    found = shutil.which(path or "relion_refine")
    if found is None:
        raise FileNotFoundError(
            f"{path or 'relion_refine'} is no program that can be run. Install RELION (Debian's package is "
            "called relion), or give --relion PATH."
        )
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"version:?\s*(\d+)((\.\d+)+)", said.stdout + said.stderr)
    if version is None:
        raise RuntimeError(
            f"{found} --version says no version number but {said.stdout[:200]!r}. Give another --relion PATH."
        )
    return Relion(found, version.group(1) + version.group(2), int(version.group(1)) >= FIRST_WITH_VDAM)


def refine_options(*, method, n_classes, iterations, mask_diameter, seed, threads=1):
    """Options of 2-D classification, without input and output; `method` is EM or VDAM."""
    options = (
        f"--K {n_classes} --iter {iterations} --particle_diameter {mask_diameter:g} --random_seed {seed} "
        "--ctf --tau2_fudge 2 --flatten_solvent --zero_mask --norm --scale --pad 2 "
        "--psi_step 12 --oversampling 1 --offset_range 5 --offset_step 2 "
        f"--dont_combine_weights_via_disc --pool 30 --j {threads}"
    )
    if method == "VDAM":
        options += " --grad --class_inactivity_threshold 0.1 --grad_write_iter 10"
    return options.split()


def fixed_pose_options(*, n_classes, iterations, mask_diameter, finest, seed, threads=1):
    """Options of 2-D classification without any alignment, at the poses of the STAR file.

    Images are compared up to `finest` Angstrom: RELION finds no signal beyond 25 Angstrom at a
    signal-to-noise ratio of 0.01, and half of its time would go there.
    """
    return (
        f"--K {n_classes} --iter {iterations} --particle_diameter {mask_diameter:g} --random_seed {seed} "
        "--ctf --tau2_fudge 2 --flatten_solvent --zero_mask --norm --scale --pad 2 "
        f"--skip_align --oversampling 0 --strict_highres_exp {finest:g} "
        f"--dont_combine_weights_via_disc --pool 30 --j {threads}"
    ).split()


def write_centred(stack, star):
    """Write particles moved by their shifts, below the pixel, with their angles: RELION rounds shifts."""
    box = stack.box
    row, column = np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)  # cycles per pixel
    x, y = stack.poses.shift_px(stack.pixel_size).T[:, :, None, None]
    phase = np.exp(-2j * np.pi * (column * x + row * y))  # (n_images, box, box / 2 + 1)
    images = np.fft.irfft2(np.fft.rfft2(stack.read()) * phase, s=(box, box)).astype(np.float32)
    poses = Poses(stack.poses.angle_rad, np.zeros((len(stack), 2)))
    centred = ParticleStack(images, pixel_size=stack.pixel_size, ctf=stack.ctf, poses=poses)
    star.parent.mkdir(parents=True, exist_ok=True)
    write_particles(centred, star, overwrite=True)


def run_relion(relion, star, out, options, *, reuse=False):
    """Classify the particles of a STAR file, in its folder.

    A finished run in `out` is taken as it is if `reuse` says so, with the costs measured then, provided that
    the same version made it with the same options from the same images; one that was killed goes on.

    Returns
    -------
    costs : dict
        As `measured` gives them, with ``stored``: whether they are those of an earlier run. Those of a run
        that was killed are lost; ``continued`` says whether they are.
    found : Path
        STAR file of the last iteration.
    """
    asked = {"version": relion.version, "options": options, "images": fingerprint(star)}
    stored, start = out / COSTS, ["--i", star.name]
    if reuse and stored.exists():
        costs = json.loads(stored.read_text())
        different = [key for key, value in asked.items() if costs[key] != value]
        if different:
            raise ValueError(
                f"{out} holds a run that differs in its {' and '.join(different)}. Give another --reuse "
                "folder, or --keep to run it again."
            )
        if "wall_s" in costs:
            return {**costs, "stored": True}, last_iteration(out)
        if any(out.glob("run_it*_data.star")):
            start = [
                "--continue",
                str(last_iteration(out).resolve()).replace("_data.star", "_optimiser.star"),
            ]
    continued = start[0] == "--continue"
    if not continued:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        stored.write_text(json.dumps(asked, indent=1))
    command = [relion.path, *start, "--o", out.resolve() / "run", *options]
    costs = {**asked, **measured(command, out / "log.txt", folder=star.parent), "continued": continued}
    stored.write_text(json.dumps(costs, indent=1))
    return {**costs, "stored": False}, last_iteration(out)


def particles_of(found, star, n_images):
    """Particles of RELION's STAR file `found`, without pixels, and the row of each in the file `star`."""
    stack = read_particles(found, images_dir=star.parent, metadata_only=True)
    row = image_numbers(stack)
    if not np.array_equal(np.sort(row), np.arange(n_images)):
        raise ValueError(
            f"{found} does not hold each of the {n_images} particles once. Look at its run's log."
        )
    return stack, row


def image_numbers(stack):
    """Place of each image in its file, from 0."""
    return stack.metadata["rlnImageName"].str.split("@").str[0].astype(int).to_numpy() - 1


def last_iteration(out):
    """Particles of the last iteration that RELION wrote."""
    return max(out.glob("run_it*_data.star"))


def fingerprint(star):
    """Hash of a STAR file but for its comments, and of the pixels of the stack of the same name."""
    digest = hashlib.sha256()
    lines = star.read_text().splitlines()
    digest.update("\n".join(line for line in lines if not line.startswith("#")).encode())
    with star.with_suffix(".mrcs").open("rb") as stack:
        stack.seek(1024)  # the header holds the time of writing
        while block := stack.read(2**24):
            digest.update(block)
    return digest.hexdigest()
