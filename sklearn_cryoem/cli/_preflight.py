"""What can be known to fail after the hours of a run is tried before them, by what will do it."""

import importlib.util
import io
import math
import re
import warnings
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np

from sklearn_cryoem._core.files import check_room
from sklearn_cryoem.cli._classes import write_classes
from sklearn_cryoem.cli._estimators import make_clusterer
from sklearn_cryoem.cli._outputs import TRIAL
from sklearn_cryoem.cli._resume import UNFINISHED
from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.console import CommandError

_EXTRA = "cli"  # what the commands need beside the library's own dependencies
_REFERENCES_A_CLASS = 2.5  # of an aligner, where nobody asked for another number
_COPIES = 10  # of all averages and references: in files, models and the states of fits; measured


def check_machine(console):
    """Raise if pictures cannot be drawn; warn of dependencies that are older than this package declares.

    Parameters
    ----------
    console : Console
        Says the warnings.

    Raises
    ------
    CommandError
        If matplotlib is missing, broken, or cannot draw with the settings that it finds.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            "matplotlib is not installed, and the pictures need it. "
            "Install it with: pip install 'sklearn-cryoem[plot]'"
        )
    for name, found, wanted in outdated():
        console.warn(
            f"{name} {found} is installed, and sklearn-cryoem is made for {name}{wanted}: what fails may be "
            f"due to that. Install it with: pip install '{name}{wanted}'"
        )
    try:
        from sklearn_cryoem.plotting import plot_class_averages

        picture = plot_class_averages(np.eye(8)[np.newaxis], counts=[1], resolutions=[8.0], numbers=True)
        picture.figure.savefig(io.BytesIO(), format="png", dpi=20)
    except Exception as error:  # of matplotlib, Pillow, fonts, LaTeX or what matplotlibrc asks for
        raise CommandError(
            f"pictures cannot be drawn here ({type(error).__name__}: {' '.join(str(error).split())}). "
            "Correct or remove the matplotlibrc file in use, or install matplotlib again: pip install "
            "--force-reinstall matplotlib"
        ) from error


def outdated():
    """Dependencies that are installed in a version older than declared, as (name, version, wanted)."""
    from packaging.requirements import Requirement  # a dependency of matplotlib

    try:
        declared = requires("sklearn-cryoem")
    except PackageNotFoundError:  # run from its sources
        declared = None
    found = []
    for line in declared or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": _EXTRA}):
            continue
        try:
            installed = version(needed.name)
        except PackageNotFoundError:  # said where it is needed
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            found.append((needed.name, installed, str(needed.specifier)))
    return found


def rehearse(stack, options, folder, n_classes):
    """Write what the run will write, of made-up results, and remove it; see that there is room for the rest.

    Whatever stands in the way of the last file stands in the way of this one: a name that the format cannot
    hold, a field that it lacks, versions that do not go together, a folder that is read-only, a quota.

    Parameters
    ----------
    stack : ParticleStack
        What was read.
    options : argparse.Namespace
        With everything that `classify.add_classification` defines.
    folder : RunFolder
        The folder of the run.
    n_classes : int
        At most so many classes will be written.

    Raises
    ------
    CommandError
        If they cannot be written.
    """
    n_references = 0
    if not options.skip_align:
        n_references = options.align_references or math.ceil(_REFERENCES_A_CLASS * options.align_classes)
    averages = 4 * (n_classes + min(n_references, len(stack))) * stack.box**2
    try:
        with folder.trial() as trial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again, with the results they are about
            _write_made_up(stack, options, trial)
            written = sum(path.stat().st_size for path in trial.path.iterdir())
        check_room(folder.path, 2 * written + _COPIES * averages)  # labels and poses are in models, too
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = re.sub(f"{UNFINISHED}/{TRIAL}\\w+/", "", reason)  # as the file will be called
        raise CommandError(
            f"the results could not be written, which was tried before the fits: {in_the_shell(reason)}"
        ) from error


def _write_made_up(stack, options, trial):
    from sklearn_cryoem.cli._workflow import MODEL, labelled_name
    from sklearn_cryoem.estimators import save_model
    from sklearn_cryoem.io import write_particles
    from sklearn_cryoem.particles import Poses
    from sklearn_cryoem.quality import class_quality

    n, nothing = len(stack), np.zeros(len(stack), dtype=np.int64)
    if not options.skip_align:
        mirrored = np.full(n, options.align_mirrored)
        stack = stack.with_poses(Poses(np.zeros(n), np.zeros((n, 2)), mirrored))
    write_particles(
        stack,
        trial / labelled_name(options.particles.suffix),
        labels=nothing,
        posterior=nothing,
        latent_positions=np.zeros((n, 3)),
    )
    quality = class_quality(nothing[:2], stack[:2])
    write_classes(np.zeros((1, stack.box, stack.box)), stack.pixel_size, quality, trial)
    save_model(make_clusterer(options), trial / MODEL)
