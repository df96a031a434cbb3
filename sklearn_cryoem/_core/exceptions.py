"""The errors and warnings of the library. Each message says what was found, what was expected, what to do."""

import re

_NAME = re.compile(r"\[([a-z]+(?:-[a-z]+)*)\]$")


class ParticleDataError(ValueError):
    """A particle file, its metadata or its pixels cannot be used as they are."""


class ModelFileError(ValueError):
    """A saved model cannot be read back."""


class OutOfMemoryError(MemoryError):
    """A fit found no memory for its next step; what it asked for is in the error that this one follows."""


class WorkerLostError(RuntimeError):
    """Worker processes ended before their task was done, most often because memory ran out."""


class ParticleDataWarning(UserWarning):
    """Particle data can be used, but something about them is suspicious or was left out.

    Attributes
    ----------
    name : str or None
        Short name of what was found, under which the documentation has more of it; the message ends with it.
    """

    @property
    def name(self) -> str | None:
        """Short name of what was found; None if it has none."""
        match = _NAME.search(str(self))
        return None if match is None else match[1]
