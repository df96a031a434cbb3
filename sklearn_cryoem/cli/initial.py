"""`sklearn-cryoem initial-model`: a first volume from the class averages of a finished run."""

from pathlib import Path

import sklearn_cryoem as lib
from sklearn_cryoem._core.files import atomic_path, try_to_write
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.options import (
    MACHINE,
    add_machine,
    add_options,
    add_output,
    new_command,
    not_negative,
    parameters_from,
    positive,
)
from sklearn_cryoem.cli.run_folder import averages_of_run, quality_of_run

_FIT = [
    ("symmetry", "--symmetry", "GROUP", str, "C1", "C1, C2, .. or D2, D3, .."),
    ("mask_diameter", "--mask-diameter", "A", positive, None,
     "of the particle, Angstrom (default: 0.9 of the box)"),
    ("max_shift", "--max-shift", "A", not_negative, None,
     "of an average, Angstrom (default: 0.05 of the box)"),
    ("max_resolution", "--max-resolution", "A", positive, None, "finest detail used, Angstrom (default: 24)"),
]  # fmt: skip


def add_initial_model(commands):
    """Add `initial-model` to the parser."""
    parser = new_command(commands, "initial-model", initial_model)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    add_output(parser, "MAP", "map to write (.mrc)")
    add_options(parser, [("--all", None, bool, False, "take all averages, not only those suggested")], _FIT)
    add_machine(parser.add_argument_group("machine"))


def initial_model(options, console):
    """Make a first volume from the class averages of a run.

    Make a volume from the class averages that a run suggests to keep, as a beginning for a refinement
    elsewhere.

    The hand of the volume cannot be known from projections: try its mirror image, too. Beside the map there
    is a picture: sections, views, and projections below the averages that they should look like.
    """
    averages, pixel_size = averages_of_run(options.folder)
    quality = quality_of_run(options.folder)
    if options.output.suffix.lower() != ".mrc":
        raise CommandError(f"{options.output} is no name of a map, expected one in .mrc. Change the suffix.")
    picture = options.output.with_suffix(".png")
    for path in (options.output, picture):
        try_to_write(path, overwrite=options.force)
    chosen = (quality["size"] > 0) & (quality["resolution"] < float("inf"))
    chosen &= options.all | quality["keep"]
    if not chosen.any():
        raise CommandError(f"{options.folder} suggests no class to keep. Pass --all to take all averages.")
    model = lib.estimators.initial_model(
        averages[chosen.to_numpy()],
        pixel_size,
        sizes=quality.loc[chosen, "size"],
        resolutions=quality.loc[chosen, "resolution"],
        **parameters_from(options, _FIT, MACHINE),
        verbose=0 if options.quiet else 1,
    )
    lib.io.write_mrc(options.output, model.volumes_[0], pixel_size, overwrite=options.force)
    with atomic_path(picture, overwrite=options.force) as path:
        lib.plotting.plot_volume(model).savefig(path)
    scores = ", ".join(f"{score:.2f}" for score in model.start_scores_)
    console.say(f"{chosen.sum()} class averages; log likelihood of the starts: {scores}")
    console.say(f"{options.output}: halves agree up to {model.volume_resolution_[0]:.3g} A; {picture}")
