"""`sklearn-cryoem simulate` and `demo`: particles with known truth, as files, and a run on them."""

import argparse
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli import classify
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.options import (
    add_classification,
    add_machine,
    add_options,
    add_run,
    count,
    fraction,
    new_command,
    not_negative,
    positive,
)
from sklearn_cryoem.cli.results import output_names, tell, write
from sklearn_cryoem.cli.run_folder import RunFolder

STACK, STAR, TRUTH, MAP = "particles.mrcs", "particles.star", "truth.csv", "map.mrc"
_DRAWN_IN_A_SESSION = ("noise", "views", "no_rotation", "weights", "astigmatism", "voltage", "cs")
_DEMO_STACK, _DEMO_STAR = "simulated.mrcs", "simulated.star"
_DEMO_BOX, _DEMO_SNR, _DEMO_JUNK = 64, 0.1, 0.1
_DEMO_DESCRIPTION = f"""\
Simulate particles of a ribosome-like phantom as hard as those of a real session ({_DEMO_BOX} px,
signal-to-noise ratio {_DEMO_SNR}, picks off centre, neighbours, {_DEMO_JUNK:.0%} junk, views that prefer
directions), align and cluster them without telling what they are, and measure the result against the truth.
Under three minutes on two cores.
"""
_PHANTOM_NAMES = ("ribosome", "ring-10", "ring-11", "ring-12", "rp", "rp-cp")


def add_simulate(commands):
    """Add `simulate` to the parser; return its own parser."""
    parser = new_command(
        commands, "simulate", simulate,
        summary="simulate particles of a volume or a phantom, with known truth",
        description="Simulate particle images (CTF with astigmatism, shifts, rotation, noise, junk) and "
        f"write {STACK}, {STAR}, {TRUTH} (view, angle in radians, shift in Angstrom, structure, junk) and, "
        f"of a single structure, {MAP}. "
        "With --session they are as hard as real ones: views that prefer directions, picks off centre, "
        "neighbours in the box, four kinds of junk, and ice, noise, defocus and contrast by micrograph.",
    )  # fmt: skip
    add_run(parser, "output")
    what = parser.add_argument_group("what is imaged (several make a mixed set)")
    what.add_argument("--volume", metavar="FILE", type=Path, nargs="+", help="density maps (.mrc)")
    what.add_argument(
        "--phantom",
        metavar="NAME",
        choices=_PHANTOM_NAMES,
        nargs="+",
        help=f"made in code: {', '.join(_PHANTOM_NAMES)} (default: ribosome)",
    )
    what.add_argument(
        "--weights", metavar="W", type=not_negative, nargs="+", help="share of each (default: equal)"
    )
    images = parser.add_argument_group("images")
    add_options(images, [
        ("session", "--session", None, bool, False,
         "like particles of a real session at the microscope; noise, views and optics are drawn by it"),
        ("particles", "--particles", "N", count, 1000, "number of images"),
        ("box", "--box", "PIXELS", count, 64, "side of the images in pixels"),
        ("pixel_size", "--pixel-size", "A", positive, None,
         "Angstrom per pixel (default: that of the volume; for phantoms, what fits the box)"),
        ("snr", "--snr", "X", positive, 0.1,
         "variance of the signal over that of the noise; in a session the mean of the particles"),
        ("views", "--views", "N", count, None, "number of view directions (default: one for each particle)"),
        ("no_rotation", "--no-rotation", None, bool, False, "do not turn particles in the plane"),
        ("max_shift", "--max-shift", "A", not_negative, None,
         "largest shift off centre, in Angstrom (default: 0; an eighth of the box in a session)"),
        ("junk", "--junk", "X", fraction, None,
         "share of images that hold no good particle (default: 0; 0.2 in a session)"),
        ("picked_twice", "--picked-twice", "X", fraction, None,
         "in a session: share of good particles that are picked once more (default: 0)"),
    ])  # fmt: skip
    images.add_argument(
        "--noise", choices=("white", "coloured"), help="spectrum of the noise (default: white)"
    )
    optics = parser.add_argument_group("microscope")
    optics.add_argument(
        "--defocus", metavar=("MIN", "MAX"), type=not_negative, nargs=2,
        help="range of the mean defocus in Angstrom, underfocus positive (default: 10000 25000; 8000 22000 "
        "in a session)",
    )  # fmt: skip
    add_options(optics, [
        ("astigmatism", "--astigmatism", "A", not_negative, None,
         "largest difference of the two defocus values, in Angstrom (default: 500)"),
        ("voltage", "--voltage", "kV", positive, None, "in kV (default: 300)"),
        ("cs", "--cs", "mm", not_negative, None, "spherical aberration in mm (default: 2.7)"),
    ])  # fmt: skip
    add_machine(parser.add_argument_group("machine"))
    return parser


def simulate(options, console):
    """Simulate and write."""
    with RunFolder(options.output, [STACK, STAR, TRUTH, MAP], force=options.force) as folder:
        from sklearn_cryoem.datasets import load_volume, make_particles, make_session
        from sklearn_cryoem.datasets.simulate import resolve_volumes
        from sklearn_cryoem.io import write_mrc, write_particles

        if options.volume and options.phantom:
            raise CommandError("--volume and --phantom exclude each other. Give one of them.")
        imaged = [load_volume(path) for path in options.volume or []] or options.phantom or ["ribosome"]
        if options.session:
            _check_session(options)
        elif options.picked_twice is not None:
            raise CommandError("--picked-twice is for a --session. Leave it out, or add --session.")
        imaged, pixel_size = resolve_volumes(imaged, options.box, options.pixel_size)
        make = make_session if options.session else make_particles
        with folder.timed("simulate"):
            stack = make(
                imaged,
                options.particles,
                box=options.box,
                pixel_size=pixel_size,
                snr=options.snr,
                **_given(options),
                path=folder / STACK,
                overwrite=options.force,
                n_jobs=options.jobs,
                random_state=options.seed,
                verbose=0 if options.quiet else 1,
            )
        with folder.timed("write"):
            write_particles(stack, folder / STAR, overwrite=options.force)
            folder.write_csv(TRUTH, stack.truth)
            if len(imaged) == 1:
                write_mrc(folder / MAP, imaged[0].array, imaged[0].pixel_size, overwrite=options.force)
            results = {
                "n_particles": len(stack),
                "box_px": stack.box,
                "pixel_size_angstrom": stack.pixel_size,
            }
            folder.write_summary(options, results, console.warnings)
    console.say(f"{len(stack):,} particles of {stack.box} px, {stack.pixel_size:g} A/px, in {folder.path}:")
    console.table([
        (STAR, "metadata for RELION and for sklearn-cryoem classify"),
        (STACK, "images"),
        (TRUTH, "what each image really shows"),
        *[(MAP, "the structure that they show")] * (len(imaged) == 1),
    ])  # fmt: skip


def _check_session(options):
    """Refuse what a session draws by itself."""
    given = [name for name in _DRAWN_IN_A_SESSION if getattr(options, name) not in (None, False)]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise CommandError(
            f"--session draws these by itself: {names}. Leave them out, or leave out --session."
        )


def _given(options):
    """Parameters of a simulation that options set; others have the defaults of the library."""
    given = {
        "max_shift": options.max_shift,
        "junk_fraction": options.junk,
        "picked_twice": options.picked_twice,
        "defocus": options.defocus and tuple(options.defocus),
        "n_views": options.views,
        "in_plane": False if options.no_rotation else None,
        "astigmatism": options.astigmatism,
        "voltage_volts": options.voltage and 1e3 * options.voltage,
        "cs_angstrom": None if options.cs is None else 1e7 * options.cs,
        "noise": options.noise,
        "weights": options.weights,
    }
    return {name: value for name, value in given.items() if value is not None}


# ---------------------------------------------------------------- demo
def add_demo(commands):
    """Add `demo` to the parser; return its own parser."""
    parser = new_command(
        commands, "demo", demo,
        summary="simulate, align and cluster particles, and measure how well it went",
        description=_DEMO_DESCRIPTION,
    )  # fmt: skip
    add_run(parser, output=Path("demo"))
    add_options(parser, [
        ("particles", "--particles", "N", count, 2000, "number of particles"),
        ("align_classes", "--align-classes", "N", count, 20, "classes while aligning"),
        ("classes", "--classes", "N", count, 64, "classes on the manifold"),
    ])  # fmt: skip
    add_machine(parser)
    return parser


def demo(options, console):
    """Simulate, classify, measure, write, tell."""
    from sklearn_cryoem.cli.preflight import check_machine, screen

    names = [_DEMO_STACK, _DEMO_STAR, TRUTH, *output_names(".star")]
    with RunFolder(options.output, names, force=options.force) as folder:
        check_machine(console)
        with folder.timed("simulate"):
            stack = _simulate_session(options, folder)
        console.say(f"simulated {stack!r}")
        chosen = _as_classify_options(options)
        stack, _ = screen(stack, chosen, folder, console)
        outcome = classify.fit_flat(stack, chosen, folder, console)
        results = write(outcome, ".star", folder, console)
        results["accuracy"] = accuracy(outcome, options.seed)
        folder.write_summary(options, results, console.warnings)
    tell(results, folder, console)
    tell_accuracy(results["accuracy"], console)


def _simulate_session(options, folder):
    """Write the particles as a user would have them, and read them back with the truth beside."""
    from sklearn_cryoem.datasets import make_session
    from sklearn_cryoem.io import read_particles, write_particles

    made = make_session(
        "ribosome",
        options.particles,
        box=_DEMO_BOX,
        snr=_DEMO_SNR,
        junk_fraction=_DEMO_JUNK,
        path=folder / _DEMO_STACK,
        overwrite=options.force,
        n_jobs=options.jobs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    write_particles(made, folder / _DEMO_STAR, overwrite=options.force)
    folder.write_csv(TRUTH, made.truth)
    return read_particles(folder / _DEMO_STAR).with_truth(made.truth)


def _as_classify_options(options):
    """The demo's options as those of `classify`, with everything else at its default."""
    parser = argparse.ArgumentParser()
    add_classification(parser)
    defaults = vars(parser.parse_args([]))
    return argparse.Namespace(**{**defaults, **vars(options), "particles": Path(_DEMO_STAR)})


def accuracy(outcome, seed):
    """Measures of a run against the truth that its stack carries.

    Parameters
    ----------
    outcome : Outcome
        Of a stack with truth.
    seed : int
        Of the random classes that it is compared with.

    Returns
    -------
    dict
        Fractions of same-class pairs with close views, and the same for random classes of the same sizes;
        median errors of angle and shift within the aligner's classes; how well classes hold junk together.
    """
    from sklearn_cryoem.metrics import fraction_within, pose_errors

    truth, labels = outcome.stack.truth, outcome.model.labels_
    good = ~truth["is_junk"].to_numpy(dtype=bool)
    views = truth[["view_x", "view_y", "view_z"]].to_numpy()[good]
    shuffled = np.random.default_rng(seed).permutation(labels[good])
    errors = pose_errors(outcome.stack.poses, truth, outcome.aligner.labels_)
    return {
        "pairs_within_10_degrees": fraction_within(labels[good], views, 10),
        "pairs_within_10_degrees_by_chance": fraction_within(shuffled, views, 10),
        "pairs_within_20_degrees": fraction_within(labels[good], views, 20),
        "pairs_within_20_degrees_by_chance": fraction_within(shuffled, views, 20),
        "median_angle_error_degrees": np.degrees(errors.median_angle_rad),
        "median_shift_error_angstrom": errors.median_shift,
        **junk_separation(labels, ~good),
    }


def junk_separation(labels, is_junk):
    """Share of junk, and of good particles, in classes of which more than half is junk."""
    size = np.bincount(labels)
    junk = np.bincount(labels, weights=is_junk)
    in_junk_class = (junk > 0.5 * size)[labels]
    return {
        "junk_in_junk_classes": float(in_junk_class[is_junk].mean()) if is_junk.any() else float("nan"),
        "good_in_junk_classes": float(in_junk_class[~is_junk].mean()) if not is_junk.all() else float("nan"),
    }


def tell_accuracy(measured, console):
    """Say how well it went."""
    console.say("measured against the truth:")
    rows = []
    for degrees in (10, 20):
        share = measured[f"pairs_within_{degrees}_degrees"]
        chance = measured[f"pairs_within_{degrees}_degrees_by_chance"]
        rows.append((
            f"same-class pairs with views within {degrees} degrees",
            f"{share:.1%}, by chance {chance:.1%} ({share / max(chance, 1e-9):.0f} times)",
        ))  # fmt: skip
    rows += [
        ("in-plane angle, median error", f"{measured['median_angle_error_degrees']:.1f} degrees"),
        ("centring, median error", f"{measured['median_shift_error_angstrom']:.1f} A"),
        (
            "particles in classes that are mostly junk",
            f"{measured['junk_in_junk_classes']:.0%} of the junk, "
            f"{measured['good_in_junk_classes']:.1%} of the others",
        ),
    ]
    console.table(rows)
