"""`sklearn-cryoem simulate` and `demo`: particles with known truth, as files, and a run on them."""

import argparse
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem.cli import classify
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.preflight import check_machine, screen
from sklearn_cryoem.cli.results import output_names, tell, write
from sklearn_cryoem.cli.run_folder import RunFolder

STACK, STAR, TRUTH, MAP = "particles.mrcs", "particles.star", "truth.csv", "map.mrc"
_DRAWN_IN_A_SESSION = ("noise", "views", "no_rotation", "weights", "astigmatism", "voltage", "cs")
_DEMO_STACK, _DEMO_STAR = "simulated.mrcs", "simulated.star"
_DEMO_BOX, _DEMO_SNR, _DEMO_JUNK = 64, 0.1, 0.1
_PHANTOM_NAMES = ("ribosome", "ring-10", "ring-11", "ring-12", "rp", "rp-cp")


_IMAGES = [
    ("n_views", "--views", "N", opts.count, None,
     "number of view directions (default: one for each particle)"),
    ("max_shift", "--max-shift", "A", opts.not_negative, None,
     "largest shift off centre, in Angstrom (default: 0; an eighth of the box in a session)"),
    ("junk_fraction", "--junk", "X", opts.fraction, None,
     "share of images that hold no good particle (default: 0; 0.2 in a session)"),
    ("picked_twice", "--picked-twice", "X", opts.fraction, None,
     "in a session: share of good particles that are picked once more (default: 0)"),
    ("noise", "--noise", None, ("white", "coloured"), None, "spectrum of the noise (default: white)"),
]  # fmt: skip
_OPTICS = [
    ("astigmatism", "--astigmatism", "A", opts.not_negative, None,
     "largest difference of the two defocus values, in Angstrom (default: 500)"),
    ("voltage_volts", "--voltage", "kV", opts.positive, None, "in kV (default: 300)"),
    ("cs_angstrom", "--cs", "mm", opts.not_negative, None, "spherical aberration in mm (default: 2.7)"),
]  # fmt: skip
_IN_UNITS_OF_THE_LIBRARY = {"voltage_volts": 1e3, "cs_angstrom": 1e7}


def add_simulate(commands):
    """Add `simulate` to the parser."""
    parser = opts.new_command(commands, "simulate", simulate)
    opts.add_run(parser, "output")
    what = parser.add_argument_group("what is imaged (several make a mixed set)")
    what.add_argument("--volume", metavar="FILE", type=Path, nargs="+", help="density maps (.mrc)")
    what.add_argument(
        "--phantom", metavar="NAME", choices=_PHANTOM_NAMES, nargs="+",
        help=f"made in code: {', '.join(_PHANTOM_NAMES)} (default: ribosome)",
    )  # fmt: skip
    what.add_argument(
        "--weights", metavar="W", type=opts.not_negative, nargs="+", help="share of each (default: equal)"
    )
    images = parser.add_argument_group("images")
    opts.add_options(images, [
        ("--session", None, bool, False,
         "like particles of a real session at the microscope; noise, views and optics are drawn by it"),
        ("--particles", "N", opts.count, 1000, "number of images"),
        ("--box", "PIXELS", opts.count, 64, "side of the images in pixels"),
        ("--pixel-size", "A", opts.positive, None,
         "Angstrom per pixel (default: that of the volume; for phantoms, what fits the box)"),
        ("--snr", "X", opts.positive, 0.1,
         "variance of the signal over that of the noise; in a session the mean of the particles"),
        ("--no-rotation", None, bool, False, "do not turn particles in the plane"),
    ], _IMAGES)  # fmt: skip
    optics = parser.add_argument_group("microscope")
    optics.add_argument(
        "--defocus", metavar=("MIN", "MAX"), type=opts.not_negative, nargs=2,
        help="range of the mean defocus in Angstrom, underfocus positive (default: 10000 25000; 8000 22000 "
        "in a session)",
    )  # fmt: skip
    opts.add_options(optics, _OPTICS)
    opts.add_machine(parser.add_argument_group("machine"))


def simulate(options, console):
    """Simulate particles of a volume or a phantom, with known truth.

    Simulate particle images (CTF with astigmatism, shifts, rotation, noise, junk) and write particles.mrcs,
    particles.star, truth.csv (view, angle in radians, shift in Angstrom, structure, junk) and, of a single
    structure, map.mrc. With --session they are as hard as real ones: views that prefer directions, picks off
    centre, neighbours in the box, four kinds of junk, and ice, noise, defocus and contrast by micrograph.
    """
    with RunFolder(options.output, [STACK, STAR, TRUTH, MAP], force=options.force) as folder:
        if options.volume and options.phantom:
            raise CommandError("--volume and --phantom exclude each other. Give one of them.")
        volumes = [lib.datasets.load_volume(path) for path in options.volume or []]
        imaged = volumes or options.phantom or ["ribosome"]
        if options.session:
            _check_session(options)
        elif options.picked_twice is not None:
            raise CommandError("--picked-twice is for a --session. Leave it out, or add --session.")
        imaged, pixel_size = lib.datasets.simulate.resolve_volumes(imaged, options.box, options.pixel_size)
        settings = {"box": options.box, "pixel_size": pixel_size, "snr": options.snr, **_given(options)}
        make = lib.datasets.make_session if options.session else lib.datasets.make_particles
        stack = _make_files(make, imaged, STACK, STAR, settings, options, folder)
        if len(imaged) == 1:
            lib.io.write_mrc(folder / MAP, imaged[0].array, imaged[0].pixel_size, overwrite=options.force)
        results = {"n_particles": len(stack), "box_px": stack.box, "pixel_size_angstrom": stack.pixel_size}
        folder.write_summary(options, results, console.warnings)
    console.say(f"{len(stack):,} particles of {stack.box} px, {stack.pixel_size:g} A/px, in {folder.path}:")
    console.table([
        (STAR, "metadata for RELION and for sklearn-cryoem classify"),
        (STACK, "images"),
        (TRUTH, "what each image really shows"),
        *[(MAP, "the structure that they show")] * (len(imaged) == 1),
    ])  # fmt: skip


def _make_files(make, imaged, stack_name, star_name, settings, options, folder):
    """Simulate; write images, their table and the truth about them; return the particles."""
    with folder.timed("simulate"):
        stack = make(
            imaged,
            options.particles,
            path=folder / stack_name,
            overwrite=options.force,
            n_jobs=options.jobs,
            random_state=options.seed,
            verbose=0 if options.quiet else 1,
            **settings,
        )
    with folder.timed("write"):
        lib.io.write_particles(stack, folder / star_name, overwrite=options.force)
        folder.write_csv(TRUTH, stack.truth)
    return stack


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
    given = opts.parameters_from(options, _IMAGES, _OPTICS)
    for name in given.keys() & _IN_UNITS_OF_THE_LIBRARY.keys():
        given[name] *= _IN_UNITS_OF_THE_LIBRARY[name]
    for name in ("weights", "defocus"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    return given | ({"in_plane": False} if options.no_rotation else {})


# ---------------------------------------------------------------- demo
def add_demo(commands):
    """Add `demo` to the parser."""
    parser = opts.new_command(commands, "demo", demo)
    opts.add_run(parser, output=Path("demo"))
    opts.add_options(parser, [
        ("--particles", "N", opts.count, 2000, "number of particles"),
        ("--align-classes", "N", opts.count, 20, "classes while aligning"),
        ("--classes", "N", opts.count, 64, "classes on the manifold"),
    ])  # fmt: skip
    opts.add_machine(parser)


def demo(options, console):
    """Simulate, align and cluster particles, and measure how well it went.

    Simulate particles of a ribosome-like phantom as hard as those of a real session (64 px, signal-to-noise
    ratio 0.1, picks off centre, neighbours, 10% junk, views that prefer directions), align and cluster them
    without telling what they are, and measure the result against the truth. Under three minutes on two cores.
    """
    names = [_DEMO_STACK, _DEMO_STAR, TRUTH, *output_names(".star")]
    settings = {"box": _DEMO_BOX, "snr": _DEMO_SNR, "junk_fraction": _DEMO_JUNK}
    with RunFolder(options.output, names, force=options.force) as folder:
        check_machine(console)
        make = lib.datasets.make_session
        made = _make_files(make, "ribosome", _DEMO_STACK, _DEMO_STAR, settings, options, folder)
        # read as a user would have them
        stack = lib.io.read_particles(folder / _DEMO_STAR).with_truth(made.truth)
        console.say(f"simulated {stack!r}")
        chosen = _as_classify_options(options)
        stack, _ = screen(stack, chosen, folder, console)
        outcome = classify.fit_flat(stack, chosen, folder, console)
        results = write(outcome, ".star", folder, console)
        results["accuracy"] = accuracy(outcome, options.seed)
        folder.write_summary(options, results, console.warnings)
    tell(results, folder, console)
    tell_accuracy(results["accuracy"], console)


def _as_classify_options(options):
    """The demo's options as those of `classify`, with everything else at its default."""
    parser = argparse.ArgumentParser()
    opts.add_classification(parser)
    chosen = parser.parse_args([], argparse.Namespace(**vars(options)))  # what is there stays
    chosen.particles = Path(_DEMO_STAR)
    return chosen


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
    truth, labels = outcome.stack.truth, outcome.model.labels_
    good = ~truth["is_junk"].to_numpy(dtype=bool)
    views = truth[["view_x", "view_y", "view_z"]].to_numpy()[good]
    shuffled = np.random.default_rng(seed).permutation(labels[good])
    errors = lib.metrics.pose_errors(outcome.stack.poses, truth, outcome.aligner.labels_)
    return {
        "pairs_within_10_degrees": lib.metrics.fraction_within(labels[good], views, 10),
        "pairs_within_10_degrees_by_chance": lib.metrics.fraction_within(shuffled, views, 10),
        "pairs_within_20_degrees": lib.metrics.fraction_within(labels[good], views, 20),
        "pairs_within_20_degrees_by_chance": lib.metrics.fraction_within(shuffled, views, 20),
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
