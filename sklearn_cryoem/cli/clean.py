"""`sklearn-cryoem clean`: rounds of classification, each without what the one before it rejected."""

import shutil
from argparse import Namespace
from functools import partial

import numpy as np

from sklearn_cryoem.cli.assign import assign
from sklearn_cryoem.cli.classify import classify
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.convert import named_for
from sklearn_cryoem.cli.options import (
    add_classification,
    add_machine,
    add_options,
    add_particles,
    count,
    new_command,
    percent,
)
from sklearn_cryoem.cli.results import labelled_name
from sklearn_cryoem.cli.run_folder import UNFINISHED, check_is_file

REJECTED = "rejected.csv"
_AGAIN_SHARE = 0.4  # of the usual match; noise that is aligned to good classes has a third of it, at most
_AT_REST = 0.005  # of the particles: fewer than leave a set by chance
_RULES = [
    ("--rounds", "N", count, 4, "rounds, at most; it ends when less than 0.5 %% leave"),
    ("--max-rejected", "PERCENT", percent, 40.0,
     "stop with an error before more than this share of all particles has left"),
]  # fmt: skip
_EPILOG = """\
Each round is a folder round_1, round_2, .. with all that classify writes, its gallery too, and left.star (or
.cs), which the next one takes. DIR holds the same of the particles that are left in the end, in the classes
of the last round, and rejected.csv, which says of each particle that left in which round, from which class
and why. A run that ended early goes on by the same command.
Classes are given up that show no particle, and those whose particles match them half as well as usual; but
each of their particles is compared with the other classes, and stays if it matches one. Small classes stay if
their particles match them: rare views. In the end those that left with a class that they did not match are
aligned to the classes that are left, and come back if they match one.
"""


def add_clean(commands):
    """Add `clean` to the parser."""
    parser = new_command(
        commands, "clean", clean,
        summary="classify and reject in rounds until nothing more leaves",
        description="Classify particles, leave out what is no particle, and again with the rest, until "
        "nothing more leaves.",
        epilog=_EPILOG,
    )  # fmt: skip
    add_particles(parser)
    add_options(parser.add_argument_group("rounds"), _RULES)
    add_classification(parser)
    add_machine(parser.add_argument_group("machine"))


def clean(options, console):
    """Round by round: classify, ask which particles should leave, write the rest for the next round."""
    import pandas as pd

    from sklearn_cryoem._core.files import atomic_path
    from sklearn_cryoem.io import write_particles

    check_is_file(options.particles)
    result = options.output / labelled_name(options.particles.suffix)
    if result.exists() and not options.force:
        raise CommandError(f"{result} exists. Choose another --output, or pass --force to replace it.")
    settings = {
        name: value for name, value in vars(options).items() if name not in ("rounds", "max_rejected")
    }
    particles, left = options.particles, []
    for number in range(1, options.rounds + 1):
        folder = options.output / f"round_{number}"
        console.say(f"round {number}")
        is_named_anew = number > 1 and result.suffix == ".star"  # names in a .cs file count from the project
        own_images = None if is_named_anew else options.images_dir
        own = {"particles": particles, "output": folder, "command": "classify", "images_dir": own_images,
               "passthrough": options.passthrough if number == 1 else []}  # fmt: skip
        # states stay until the last round is done: the same command repeats no fit
        found = classify(Namespace(**settings | own), console, keep_states=True)
        reasons, is_last = _judged(found, number, options.rounds)
        leaves = reasons != ""
        if number == 1:
            everything, rows = found.stack.with_outliers(None), np.arange(len(leaves))
            if not options.skip_align:  # the file keeps its own poses, which --angle-range searches round
                everything = everything.with_poses(None)
            settings["no_ctf"] |= everything.ctf is None  # it was no table, or says nothing of the CTF
            everything = named_for(result, everything, [(particles, own_images)], console)
        row = {"row": rows, "round": number, "class": found.model.labels_ + 1, "reason": reasons}
        left.append(pd.DataFrame(row)[leaves])
        n_left = sum(map(len, left))
        if n_left > options.max_rejected / 100.0 * len(everything):
            raise CommandError(
                f"round {number} would leave out {leaves.sum():,}, in all {n_left / len(everything):.0%} of "
                f"the particles (--max-rejected {options.max_rejected:g}). Look at {folder}, and raise the "
                "limit or select classes by hand."
            )
        _tell(reasons[leaves], len(leaves), number, console)
        rows = rows[~leaves]
        particles = folder / f"left{result.suffix}"
        write_particles(everything[rows], particles, overwrite=True)
        if is_last:
            break
    table = pd.concat(left, ignore_index=True)
    back = _found_again(found, leaves, everything, table)
    if back.any():
        console.say(f"{back.sum():,} of them match the classes that are left, and come back")
        rows, table = np.sort(np.append(rows, table["row"][back])), table[~back]
    names = everything.metadata["uid" if "uid" in everything.metadata else "rlnImageName"].to_numpy()
    table.insert(0, "particle", names[table.pop("row")])
    with atomic_path(options.output / REJECTED, overwrite=True) as place:
        table.to_csv(place, index=False)
    write_particles(everything[rows], particles, overwrite=True)
    own |= {
        "model": folder,
        "particles": particles,
        "passthrough": [],
        "force": True,
        "output": options.output,
        "images_dir": options.images_dir if result.suffix == ".cs" else None,
    }
    assign(Namespace(**settings | own), console, used=options)
    for done in range(1, number + 1):
        shutil.rmtree(options.output / f"round_{done}" / UNFINISHED, ignore_errors=True)
    console.say(
        f"{len(rows):,} of {len(everything):,} particles are left after {number} "
        f"round{'s' * (number > 1)}; {REJECTED} says why the others are not"
    )


def _judged(found, number, n_rounds):
    """Why each particle should leave, empty if it stays, and whether this round is the last."""
    from sklearn_cryoem.quality import reasons_to_leave

    judge = partial(reasons_to_leave, found.model, found.stack, found.quality, found.match)
    reasons = judge(lenient=number == 1)
    is_last = number == n_rounds or np.mean(reasons != "") < _AT_REST
    return (judge(last=True) if is_last else reasons), is_last


def _found_again(found, leaves, everything, table):
    """Which rows of `table`, that left with a class they did not match, match one of the last round."""
    from sklearn_cryoem.estimators import assign_particles
    from sklearn_cryoem.particles import concatenate
    from sklearn_cryoem.particles.classes import steps_of
    from sklearn_cryoem.quality import particle_match
    from sklearn_cryoem.quality.match import WEAK

    back = np.array(table["reason"].str.startswith(WEAK), dtype=bool)
    if not back.any():
        return back
    kept, labels = found.stack[~leaves].with_outliers(None), found.model.labels_[~leaves]
    assigned, lost = assign_particles(found.whole_model, everything[table["row"].to_numpy()[back]])
    members = np.arange(len(kept) + len(lost)) < len(kept)
    labels = np.append(labels, steps_of(assigned)[-1].labels_)
    match = particle_match(labels, concatenate([kept, lost.with_outliers(None)]), members=members)
    back[back] = match[~members] >= _AGAIN_SHARE * np.median(match[members])
    return back


def _tell(reasons, n_particles, number, console):
    """Say how many left in a round and why, by kind."""
    import pandas as pd

    kinds = pd.Series(reasons, dtype=object).str.replace(r"[\d.]+( %|%)?", "..", regex=True).value_counts()
    console.say(f"round {number}: {len(reasons):,} of {n_particles:,} particles leave")
    console.table([(f"{n:,}", kind) for kind, n in kinds.items()])
