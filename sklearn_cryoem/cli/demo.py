"""`sklearn-cryoem demo`: the whole way on simulated particles, measured against the truth."""

import argparse
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli._arguments import add_machine, add_output, count, new_command
from sklearn_cryoem.cli._config import add_config
from sklearn_cryoem.cli._outputs import RunFolder, options_as_dict

SIMULATED_STACK, SIMULATED_STAR, TRUTH = "simulated.mrcs", "simulated.star", "truth.csv"
_BOX, _SNR, _JUNK = 64, 0.1, 0.1
_DESCRIPTION = f"""\
Simulate particles of a ribosome-like phantom as a session brings them home ({_BOX} px, signal-to-noise
{_SNR}, picks off centre, neighbours, {_JUNK:.0%} junk, views that prefer directions), align and cluster them
without telling what they are, and measure the result against the truth. Under three minutes on two cores.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "demo", run,
        summary="simulate, align and cluster particles, and measure how well it went",
        description=_DESCRIPTION,
    )  # fmt: skip
    add_output(parser, default=Path("demo"))
    add_config(parser)
    parser.add_argument("--particles", metavar="N", type=count, default=2000, help="number of particles")
    parser.add_argument("--align-classes", metavar="N", type=count, default=20, help="classes while aligning")
    parser.add_argument("--classes", metavar="N", type=count, default=64, help="classes on the manifold")
    add_machine(parser)
    return parser


def run(options, console):
    """Simulate, classify, measure, write, tell."""
    from sklearn_cryoem.cli import _workflow
    from sklearn_cryoem.cli._preflight import check_machine

    names = [SIMULATED_STACK, SIMULATED_STAR, TRUTH, *_workflow.output_names(".star")]
    with RunFolder(options.output, names, force=options.force) as folder:
        check_machine(console)
        with folder.timed("simulate"):
            stack = _simulate(options, folder)
        console.say(f"simulated {stack!r}")
        chosen = _as_classify_options(options)
        stack, _ = _workflow.screen(stack, chosen, folder, console)
        outcome = _workflow.classify(stack, chosen, folder)
        results = _workflow.write(outcome, folder, console)
        results["accuracy"] = accuracy(outcome, options.seed)
        folder.write_summary("demo", options_as_dict(options), results, console.warnings)
    _workflow.tell(results, folder, console)
    tell_accuracy(results["accuracy"], console)


def _simulate(options, folder):
    """Write the particles as a user would have them, and read them back with the truth beside."""
    from sklearn_cryoem.datasets import make_session
    from sklearn_cryoem.io import read_particles, write_particles

    made = make_session(
        "ribosome",
        options.particles,
        box=_BOX,
        snr=_SNR,
        junk_fraction=_JUNK,
        path=folder / SIMULATED_STACK,
        overwrite=options.force,
        n_jobs=options.jobs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    write_particles(made, folder / SIMULATED_STAR, overwrite=options.force)
    folder.write_csv(TRUTH, made.truth.columns, made.truth.itertuples(index=False))
    return read_particles(folder / SIMULATED_STAR).with_truth(made.truth)


def _as_classify_options(options):
    """The demo's options as those of `classify`, with everything else at its default."""
    from sklearn_cryoem.cli import classify

    parser = argparse.ArgumentParser()
    classify.add_classification(parser)
    defaults = vars(parser.parse_args([]))
    return argparse.Namespace(**{**defaults, **vars(options), "particles": Path(SIMULATED_STAR)})


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

    truth, labels = outcome.stack.truth, outcome.clusterer.labels_
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
