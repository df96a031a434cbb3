"""`sklearn-cryoem learn-selection`: which classes somebody keeps, learned from selections that were made."""

from pathlib import Path

from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.options import new_command
from sklearn_cryoem.cli.results import QUALITY

_EPILOG = f"""\
Each selection lies in the folder of its run, beside {QUALITY}. What is learned is a few numbers for each
measure of that table, and sklearn-cryoem select --like FILE applies it to other runs.
"""


def add_learn_selection(commands):
    """Add `learn-selection` to the parser; return its own parser."""
    parser = new_command(
        commands, "learn-selection", learn,
        summary="learn from selections which classes you keep",
        description="Learn from saved selections which classes you keep, by the measures of their quality.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument(
        "selections", metavar="SELECTION", type=Path, nargs="+",
        help="selections saved from reports (JSON), each in the folder of its run",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="what is learned (.json)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    return parser


def learn(options, console):
    """Read selections and tables, learn, write, say how often it is right."""
    import pandas as pd

    from sklearn_cryoem.io import read_selection
    from sklearn_cryoem.quality import learn_selection

    chosen = [read_selection(path).classes for path in options.selections]
    tables = []
    for path in options.selections:
        if not (path.parent / QUALITY).is_file():
            raise CommandError(
                f"there is no {QUALITY} beside {path}. Put the selection into its run's folder."
            )
        tables.append(pd.read_csv(path.parent / QUALITY))
    learned = learn_selection(tables, chosen)
    learned.save(options.output, overwrite=options.force)
    seen = "runs" if learned.n_runs > 1 else "classes"
    console.say(
        f"learned from {learned.n_classes} classes of {learned.n_runs} run(s), of which {learned.n_chosen} "
        f"were kept; of {seen} that it had not seen it told {learned.accuracy:.0%} of the classes as you did"
    )
    most = sorted(zip(learned.weight, learned.columns, strict=True), key=lambda pair: -abs(pair[0]))[:5]
    console.say("what counts most: " + ", ".join(f"{name} ({weight:+.2g})" for weight, name in most))
    console.say(f"written to {options.output}, for sklearn-cryoem select --like")
