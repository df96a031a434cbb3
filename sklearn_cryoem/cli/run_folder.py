"""The folder of a run: nothing replaced unasked, nothing half-written, `summary.json` last.

A run that was killed goes on: what its fits reached lies in the folder until the run is done.
"""

import copy
import json
import logging
import math
import platform
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.files import FolderInUseError, atomic_path, folder_lock, remove_leftovers
from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli.console import CommandError, Interrupted
from sklearn_cryoem.cli.options import RUN_FILE

SUMMARY, UNFINISHED = "summary.json", "unfinished"
AVERAGES, QUALITY = "class_averages.mrcs", "quality.csv"
LABELLED = ("particles.star", "particles.cs")
_TALKING = {"run", "required", "quiet", "verbose", "debug", "command", "force", "config"}
_REPORTED_VERSIONS = ("numpy", "scipy", "scikit-learn", "finufft", "mrcfile", "pandas", "joblib")


logger = logging.getLogger("sklearn_cryoem")  # of progress


class RunFolder:
    """A folder that one run fills with files of known names.

    Parameters
    ----------
    path : Path
        The folder; made if it is not there.
    names : list of str
        Every file that the run will write, `summary.json` not counted.
    force : bool
        Whether files of these names may be replaced. Other files in the folder are left alone.

    Raises
    ------
    CommandError
        If the folder cannot be used, before any work is done.
    """

    def __init__(self, path, names, *, force=False):
        goes_on = (path / UNFINISHED).is_dir()  # what lies there is of a run that was killed
        if any((path / UNFINISHED).glob("*.npz")):
            logger.info("%s: going on from where an earlier run ended, as far as it did the same", path)
        self.path, self.names, self.force = path, [*names, RUN_FILE, SUMMARY], force or goes_on
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")  # in all files of the run
        self.seconds = {}  # stage -> wall-clock seconds
        self._started = time.perf_counter()
        if path.exists() and not path.is_dir():
            raise CommandError(f"{path} is a file. Give the name of a folder to --output.")
        taken = [name for name in self.names if (path / name).exists()]
        if taken and not self.force:
            raise CommandError(
                f"{path} already holds {', '.join(taken[:3])}{' and more' if len(taken) > 3 else ''}. "
                f"Choose another --output, or pass --force to replace these files."
            )
        self._made = not path.exists()
        self._own = ExitStack()  # the folder is this run's alone
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._own.enter_context(folder_lock(path))
            (path / SUMMARY).unlink(missing_ok=True)  # from here on, what lies there is not a finished run
        except FolderInUseError as error:
            raise CommandError(
                f"{path} is being written by another run ({error}). Wait until it ends, or choose another "
                "--output."
            ) from error
        except OSError as error:
            self._own.close()
            raise CommandError(
                f"{path} cannot be written to ({error.strerror}). Choose another --output."
            ) from error
        for name in self.names:
            remove_leftovers(path / name)  # of a run that was killed while it wrote

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        with suppress(OSError):  # it is kept if something is in it
            (self.path / UNFINISHED).rmdir()
        self._own.close()
        if error is not None and self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def __truediv__(self, name):
        return self.path / name

    @contextmanager
    def trial(self):
        """The same in a folder within, to try what will be written; it is removed after the block."""
        unfinished = self.path / UNFINISHED  # where the next run expects what a killed one has left
        unfinished.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=unfinished, prefix="trial-") as place:
            trial = copy.copy(self)
            trial.path = Path(place)
            yield trial

    def writing(self, name):
        """Context manager with a temporary path that becomes `name` when the block succeeds."""
        return atomic_path(self.path / name, overwrite=self.force)

    @contextmanager
    def timed(self, stage):
        """Count the block's wall-clock time under `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def write_csv(self, name, table, **how):
        """Write a DataFrame as comma-separated values."""
        with self.writing(name) as path:
            table.to_csv(path, index=False, errors="backslashreplace", **how)

    def earlier_fits(self, config=None):
        """Fits of the run that a configuration file is of, and of the one that this replaces."""
        found = []
        for folder in {self.path.resolve(), (config or self.path / RUN_FILE).resolve().parent}:
            with suppress(OSError, ValueError):  # no model, or one that cannot be read
                model = lib.estimators.load_model(folder / "model.npz")
                found += [step for _, step in getattr(model, "steps", [])] + [getattr(model, "first_", None)]
        return found

    def fit(self, estimator, stack, known=()):
        """Fit, or go on from where the same call was killed; with a seed, for nothing else is the same call.

        Parameters
        ----------
        estimator : MAPAligner, SMLClusterer or DeepClusterer
            With its parameters.
        stack : ParticleStack
            The particles.
        known : list of estimators
            From `earlier_fits`: that of the same parameters, particles and seed is taken.

        Returns
        -------
        estimator : estimator
            Fitted; the one given, or one that a run before had done.

        Raises
        ------
        Interrupted
            If Ctrl-C ended the fit; what it has reached is kept.
        """
        if estimator.random_state is None:
            return estimator.fit(stack)
        states = self.path / UNFINISHED
        try:
            fitted = lib.estimators.fit_once(estimator, stack, states, known)[0]
            if any(fitted is model for model in known):
                logger.info(
                    "nothing that %s depends on has changed: that of the earlier run is taken",
                    type(fitted).__name__,
                )
            return fitted
        except KeyboardInterrupt:
            if not states.is_dir() or not any(states.iterdir()):
                raise
            raise Interrupted("interrupted. The same command goes on from here.") from None

    def write_summary(self, options, results, warnings, *, keep_states=False):
        """Write `run.yaml`, and then `summary.json`, the sign that the run is complete.

        Parameters
        ----------
        options : argparse.Namespace
            Every option as it was used.
        results : dict
            What the run found.
        warnings : list of str
            What it warned of.
        keep_states : bool
            Whether what the fits reached stays, for the same call to be repeated without them.
        """
        used = {name: absolute(value) for name, value in vars(options).items() if name not in _TALKING}
        with self.writing(RUN_FILE) as path:
            path.write_text(run_text(options.command, used), encoding="utf-8", errors="backslashreplace")
        summary = {
            "command": options.command,
            "started_at": self.started_at,
            "versions": versions(),
            "options": used,
            "results": results,
            "warnings": warnings,
            "seconds": {**self.seconds, "total": time.perf_counter() - self._started},
            "files": [name for name in self.names[:-1] if (self.path / name).exists()] + [SUMMARY],
        }
        with self.writing(SUMMARY) as path:
            path.write_text(json.dumps(as_json(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if not keep_states:
            shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)


def read_summary(folder):
    """`summary.json` of a run; empty where there is none that can be read."""
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_is_file(path):
    """Refuse a path that is not there, and a folder, with what may be meant."""
    if path.is_dir():
        inside = sorted(name for kind in ("*.star", "*.cs") for name in path.glob(kind))
        example = f", such as {inside[0]}" if inside else ""
        raise CommandError(f"{path} is a folder. Name a file of particles{example}.")
    if not path.exists():
        raise CommandError(f"there is no {path}. Check the path.")


def labelled_particles(path):
    """The file with class numbers that a user means: `path`, or the particles of that folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CommandError(f"there is no {path}. Give the --output of a run, or a file of particles.")
    found = [path / name for name in LABELLED if (path / name).is_file()]
    if not found:
        raise CommandError(
            f"{path} holds neither {' nor '.join(LABELLED)}. Give the --output of a run that ended."
        )
    if len(found) > 1:
        raise CommandError(f"{path} holds both {' and '.join(LABELLED)}. Name the file that you mean.")
    return found[0]


def folder_of_run(results):
    """The folder of the run whose particles were given: other tables beside them may number other classes."""
    if results.is_dir():
        return results
    if results.name not in LABELLED:
        raise CommandError(
            f"{results} is not {' or '.join(LABELLED)} of a run, so its numbers may mean other "
            "classes. Give the folder of the run."
        )
    return results.parent


def file_of_run(folder, name, remedy="Give the folder of a finished run"):
    """A file that a finished run has written; refuses a folder without it."""
    if not (folder / name).is_file():
        raise CommandError(f"{folder} holds no {name}. {remedy}.")
    return folder / name


def averages_of_run(folder):
    """Class averages of a finished run, and their pixel size."""
    return lib.io.read_mrc(file_of_run(folder, AVERAGES))


def quality_of_run(folder):
    """The table of class quality of a finished run."""
    from pandas import read_csv

    return read_csv(file_of_run(folder, QUALITY))


def run_text(command, options):
    """Text of a YAML file that repeats a run; values are written as JSON, which is YAML too."""
    lines = [
        f"# Written by sklearn-cryoem {__version__}. Repeat this run with",
        f"#   sklearn-cryoem {command} --config {RUN_FILE} -o DIR",
        f"command: {command}",
    ]
    lines += [
        f"{name}: {json.dumps(absolute(value), ensure_ascii=False, default=str)}"
        for name, value in options.items()
        if name != "output"
    ]
    return "\n".join(lines) + "\n"


def versions():
    """Versions of what computed the results."""
    own = {"sklearn-cryoem": __version__, "python": platform.python_version(), "platform": sys.platform}
    return own | {name: version(name) for name in _REPORTED_VERSIONS}


def as_json(value):
    """`value` with arrays as lists, numbers to six digits, paths as text, nan and infinity as null."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)


def absolute(value):
    """Paths from the root, so that they hold for whoever reads them from another folder."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    return value.absolute() if isinstance(value, Path) else value
