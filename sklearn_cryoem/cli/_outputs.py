"""The folder of a run: nothing replaced unasked, nothing half-written, `summary.json` last."""

import copy
import csv
import json
import math
import platform
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from sklearn_cryoem._core.files import FolderInUseError, atomic_path, folder_lock, remove_leftovers
from sklearn_cryoem._version import __version__
from sklearn_cryoem.cli._config import RUN, run_text
from sklearn_cryoem.cli._resume import UNFINISHED
from sklearn_cryoem.cli.console import CommandError

SUMMARY = "summary.json"
TRIAL = "trial-"  # how names of folders begin in which writing is tried
_REPORTED_VERSIONS = ("numpy", "scipy", "scikit-learn", "finufft", "mrcfile", "starfile", "joblib")


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
        self.path, self.names, self.force = path, [*names, RUN, SUMMARY], force or goes_on
        self.written_at = datetime.now(UTC).isoformat(timespec="seconds")  # of the run, in all of its files
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
        with tempfile.TemporaryDirectory(dir=unfinished, prefix=TRIAL) as place:
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

    def write_csv(self, name, header, rows):
        """Write a table as comma-separated values."""
        with (
            self.writing(name) as path,
            open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def write_summary(self, command, options, results, warnings):
        """Write `run.yaml`, and then `summary.json`, the sign that the run is complete.

        Parameters
        ----------
        command : str
            Name of the sub-command.
        options : dict
            Every option as it was used.
        results : dict
            What the run found.
        warnings : list of str
            What it warned of.
        """
        with self.writing(RUN) as path:
            path.write_text(run_text(command, options), encoding="utf-8", errors="backslashreplace")
        summary = {
            "command": command,
            "written_at": self.written_at,
            "versions": versions(),
            "options": options,
            "results": results,
            "warnings": warnings,
            "seconds": {**self.seconds, "total": time.perf_counter() - self._started},
            "files": [name for name in self.names[:-1] if (self.path / name).exists()] + [SUMMARY],
        }
        with self.writing(SUMMARY) as path:
            path.write_text(json.dumps(as_json(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)


def versions():
    """Versions of what computed the results."""
    found = {"sklearn-cryoem": __version__, "python": platform.python_version(), "platform": sys.platform}
    for name in _REPORTED_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


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


def options_as_dict(options):
    """What the command line was, without what is only about talking."""
    hidden = {"run", "quiet", "verbose", "debug", "command", "force", "config"}
    return {key: _absolute(value) for key, value in vars(options).items() if key not in hidden}


def _absolute(value):
    """Paths from the root, so that they hold for whoever reads them from another folder."""
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return value.absolute() if isinstance(value, Path) else value
