"""`sklearn-cryoem assign`: further particles in the classes of a finished run."""

from argparse import Namespace
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli import preflight
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.results import LEFT_OUT, MODEL, Outcome, output_names, tell, write
from sklearn_cryoem.cli.run_folder import RunFolder, check_is_file


def add_assign(commands):
    """Add `assign` to the parser."""
    parser = opts.new_command(commands, "assign", assign)
    parser.add_argument(
        "model", metavar="RUN", type=Path, nargs="?", help="folder of a run, or its model (.npz) (required)"
    )
    opts.add_particles(parser, "model", reading=[row for row in opts.READING if row[0] != "downsample"])
    opts.add_machine(parser.add_argument_group("machine"))


def assign(options, console, used=None):
    """Put further particles into the classes of a finished run.

    Align further particles to the classes of a finished run and find the class of each.

    Particles of another box, or of smaller pixels, are brought to those of the run. The folder holds what
    that of a run holds, for report, select and merge; class averages are those of the run, and everything
    else tells of the new particles.
    """
    check_is_file(options.particles)
    path = options.model / MODEL if options.model.is_dir() else options.model
    if not path.exists():
        found = f"there is no {path}" if path == options.model else f"{options.model} holds no {MODEL}"
        raise CommandError(f"{found}. Give the folder of a run.")
    model = lib.estimators.load_model(path)
    *before, last = lib.particles.classes.steps_of(model)
    if not hasattr(last, "tree_") and not hasattr(last, "latent_nodes_"):
        raise CommandError(f"{options.model} has no classes of classify or deep. Give the folder of a run.")
    for step in (*before, last):
        step.set_params(n_jobs=options.jobs, verbose=0 if options.quiet else 1)
    mask = None if hasattr(last, "tree_") else last.mask_diameter
    how = Namespace(**vars(options) | {"mask_diameter": mask, "downsample": None, "noise_groups": False})
    is_deep, aligns = hasattr(last, "tree_"), bool(before)
    names = output_names(options.particles.suffix, align=aligns or is_deep, deep=is_deep)
    with RunFolder(options.output, [*names, LEFT_OUT], force=options.force) as folder:
        preflight.check_machine(console)
        with folder.timed("read"):
            stack, n_left_out = preflight.read(how, folder, console)
            stack = lib.estimators.as_fitted_by(model, stack)
        console.say(f"{stack!r}")
        stack, n_unusable = preflight.screen(stack, how, folder, console)
        with folder.timed("assign"):
            model, stack = lib.estimators.assign_particles(model, stack)
            *before, last = lib.particles.classes.steps_of(model)
            assignment = None if is_deep else last.assign(stack)
        none = np.full(len(stack), -1)  # no second clustering: nothing was fitted
        outcome = Outcome(stack, last, before[0] if before else None, none, assignment)
        results = write(outcome, options.particles.suffix, folder, console)
        results["n_left_out"] = n_left_out + n_unusable
        folder.write_summary(used or options, results, console.warnings)
    tell(results, folder, console)
