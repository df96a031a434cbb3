"""The errors and warnings of the library. Each message says what was found, what was expected, what to do."""


class ParticleDataError(ValueError):
    """A particle file, its metadata or its pixels cannot be used as they are."""


class ModelFileError(ValueError):
    """A saved model cannot be read back."""


class ParticleDataWarning(UserWarning):
    """Particle data can be used, but something about them is suspicious or was left out."""
