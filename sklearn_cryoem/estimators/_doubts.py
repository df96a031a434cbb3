"""What a fit leaves in doubt: told when it ends, and again where its result is loaded instead of fitted."""

import warnings

from sklearn.exceptions import ConvergenceWarning


def forget_doubts(owner):
    """Begin a fit.

    Parameters
    ----------
    owner : estimator
        Gets the attribute `_doubts`.
    """
    owner._doubts = []


def doubt(owner, message, *, stacklevel):
    """Warn, and remember it.

    Parameters
    ----------
    owner : estimator
        Whose fit it is.
    message : str
        The warning.
    stacklevel : int
        1 blames the caller of this function.

    Warns
    -----
    ConvergenceWarning
    """
    owner._doubts = [*owner._doubts, message]
    warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)


def repeat_doubts(owner, *, stacklevel):
    """Warn of what the fit warned of.

    Parameters
    ----------
    owner : estimator
        Fitted, perhaps in another process.
    stacklevel : int
        1 blames the caller of this function.

    Warns
    -----
    ConvergenceWarning
    """
    for message in getattr(owner, "_doubts", []):
        warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel + 1)
