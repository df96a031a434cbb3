"""Warnings about particle data: each ends with a short name, under which the documentation has more of it."""

from __future__ import annotations

import warnings

from sklearn_cryoem._core.validation import ParticleDataWarning


def notice_text(name: str, text: str) -> str:
    """`text` with the name of its notice at the end, by which docs/guide/troubleshooting.md lists it.

    Parameters
    ----------
    name : str
        Short and stable.
    text : str
        What was found, with its numbers, and what to do.
    """
    return f"{text} [{name}]"


def notify(name: str, text: str, *, stacklevel: int = 1) -> None:
    """Warn by a `ParticleDataWarning` that ends with the name of its notice.

    Parameters
    ----------
    name, text : str
        As of `notice_text`.
    stacklevel : int
        1 blames the caller of this function, 2 the caller's caller and so on.
    """
    warnings.warn(notice_text(name, text), ParticleDataWarning, stacklevel=stacklevel + 1)
