"""`sklearn-cryoem info`: what is in a file or a finished run."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.progress import in_words
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli.console import CommandError, with_options
from sklearn_cryoem.cli.preflight import seconds_of_classification, warn_about_particles
from sklearn_cryoem.cli.run_folder import SUMMARY, as_json, read_summary

_PARTICLE_SUFFIXES = (".star", ".cs", ".csg", ".mrcs")
_LENGTHS = ("longest_shift", "finest_class_resolution", "alignment_resolution")
_SLOW = 1000  # particles: fewer are classified within a minute
_NO_CTF = "none; it will be taken as 1"
_MAP_SUFFIXES = (".mrc", ".map", ".ccp4")


# ---------------------------------------------------------------- info
def add_info(commands):
    """Add `info` to the parser."""
    parser = opts.new_command(commands, "info", info)
    parser.add_argument("path", metavar="FILE_OR_FOLDER", type=Path)
    opts.add_files(parser)
    opts.add_options(parser, [
        ("--no-checks", None, bool, False, "read no image: tell what the file says"),
        ("--json", None, bool, False, "print JSON for programs"),
    ])  # fmt: skip


def info(options, console):
    """Say what is in a file or a finished run.

    Say what is in a particle file (.star, .cs, .mrcs), a map (.mrc), a model (.npz) or the folder of a
    finished run. A few hundred images of particles are looked at for mistakes.
    """
    path, problem = options.path, ""
    if not path.exists():
        raise CommandError(f"there is no {path}. Check the path.")
    if path.is_dir():
        facts = describe_run(path)
    elif path.suffix in _PARTICLE_SUFFIXES:
        stack, problem, no_ctf = _as_much_as_can_be_read(path, options.images_dir, options.passthrough)
        facts = describe_particles(stack, problem or "found", no_ctf)
        if not problem and not options.no_checks:
            warn_about_particles(stack, console)
            clear = f"nothing {'' if no_ctf == _NO_CTF else 'else '}looks wrong"
            facts["checks"] = console.notices or [clear]
            if len(stack) >= _SLOW:
                cores = opts.available_cores()
                with suppress(ParticleDataError, ValueError):  # what cannot be aligned takes no time
                    seconds = in_words(seconds_of_classification(stack, cores))
                    on_cores = f"on {cores} core{'s' * (cores > 1)}"
                    facts["classify"] = f"about {seconds} with its default options, {on_cores}"
    elif path.suffix in _MAP_SUFFIXES:
        facts = describe_map(path)
    elif path.suffix == ".npz":
        facts = describe_model(path)
    else:
        known = ", ".join((*_PARTICLE_SUFFIXES, *_MAP_SUFFIXES, ".npz"))
        raise CommandError(
            f"{path} is of no known kind. Give a file that ends in {known}, or a run's folder."
        )
    if options.json:
        console.data(json.dumps(as_json(facts), indent=2, allow_nan=False))
    else:
        console.quiet = False  # the description is what was asked for
        console.say(f"{path}: {facts.pop('kind')}")
        unit = "px" if facts.get("pixel_size_angstrom") is None else "angstrom"
        console.table([(_title(name, unit), _text(value)) for name, value in facts.items()])
    if problem:
        raise CommandError(problem)


def describe_particles(stack, images, no_ctf):
    """Facts of particles, in reading order; no image is read.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    images, no_ctf : str
        What to say of their images, and of a missing CTF.

    Returns
    -------
    dict
    """
    ctf, poses = stack.ctf, stack.poses
    facts = {
        "kind": "particles",
        "images": images,
        "particles": len(stack),
        "box_px": stack.box,
        "pixel_size_angstrom": stack.pixel_size,
        "bytes_as_float32": stack.nbytes,
        "optics_groups": len(np.unique(stack.optics_group)),
        "noise_groups": len(np.unique(stack.noise_group)),
        "ctf": no_ctf if ctf is None else "yes",
    }
    if ctf is not None:
        astigmatism = np.abs(ctf.defocus_u_angstrom - ctf.defocus_v_angstrom)
        facts |= {
            "defocus_angstrom": _range(ctf.mean_defocus_angstrom),
            "astigmatism_angstrom": _range(astigmatism),
            "voltage_kv": _range(ctf.voltage_volts / 1e3),
            "spherical_aberration_mm": _range(ctf.cs_angstrom / 1e7),
            "amplitude_contrast": _range(ctf.amplitude_contrast),
            "phase_shift_degrees": _range(np.rad2deg(ctf.phase_shift_rad)),
            "phase_flipped_particles": int(ctf.phase_flipped.sum()),
            "ctf_premultiplied_particles": int(ctf.premultiplied.sum()),
        }
    facts["in_plane_poses"] = "none" if poses is None else "yes"
    if poses is not None:
        facts["longest_shift"] = float(np.hypot(*poses.shift.T).max(initial=0.0))
        facts["mirrored_particles"] = int(poses.mirrored.sum())
    facts["columns"] = [str(name) for name in stack.metadata.columns]
    return facts


def _as_much_as_can_be_read(path, images_dir, passthrough):
    """Stack, what is wrong with its images, and with its CTF: metadata are worth showing without either."""

    def read(**how):
        return lib.io.read_particles(path, passthrough=passthrough, rescale=True, **how)

    try:
        return read(images_dir=images_dir), "", _NO_CTF
    except ParticleDataError as error:
        problem = with_options(str(error))
    try:
        return read(metadata_only=True), problem, _NO_CTF
    except ParticleDataError:
        pass  # not the images, then
    try:
        return read(images_dir=images_dir, ctf=False), "", problem
    except ParticleDataError as error:
        images = with_options(str(error))
    return read(metadata_only=True, ctf=False), images, problem


def describe_map(path):
    """Facts of a density map.

    Parameters
    ----------
    path : Path
        An MRC file.

    Returns
    -------
    dict
    """
    array, pixel_size = lib.io.read_mrc(path)
    kind = "density map" if array.ndim == 3 and len(set(array.shape)) == 1 else "images"
    return {
        "kind": kind,
        "shape": list(array.shape),
        "pixel_size_angstrom": pixel_size,
        "values": _range(array),
        "mean": float(array.mean()),
        "standard_deviation": float(array.std()),
    }


def describe_model(path):
    """Facts of a saved model.

    Parameters
    ----------
    path : Path
        A file written by `save_model`.

    Returns
    -------
    dict
    """
    header = lib.estimators.model_files.read_model_header(path)
    facts = {"kind": "model", "written_by": header["written_by"], "written_at": header["written_at"]}
    for name, estimator, parameters in header["steps"]:
        shown = ", ".join(f"{key}={value!r}" for key, value in parameters.items() if value is not None)
        facts[name] = f"{estimator}({shown})"
    return facts


def describe_run(folder):
    """Facts of a finished run, from its summary.

    Parameters
    ----------
    folder : Path
        What was given to --output.

    Returns
    -------
    dict
    """
    summary = read_summary(folder)
    try:
        facts = {"kind": f"finished run of {summary['command']}", "started_at": summary["started_at"]}
        results = summary["results"].items()
        facts |= {name: value for name, value in results if not isinstance(value, dict | list)}
        facts["seconds"] = summary["seconds"]["total"]
        facts |= {name: summary[name] for name in ("warnings", "files")}
    except (KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{folder} holds no {SUMMARY}, or no sound one: not a finished run. Give the --output of a run "
            "that ended."
        ) from error
    return facts


def _title(name, unit):
    """Name of a fact for people; lengths whose unit depends on the file get theirs."""
    words = name.removeprefix("n_").replace("_", " ")
    return f"{words} {unit}" if name in _LENGTHS else words


def _range(values):
    """(smallest, largest), or the one value that all share."""
    low, high = float(np.min(values)), float(np.max(values))
    return low if low == high else [low, high]


def _text(value):
    """A fact as text for people."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, float) for item in value):
        return f"{value[0]:.6g} to {value[1]:.6g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)
