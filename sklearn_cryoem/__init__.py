"""Reference-free 2-D alignment and deep clustering of cryo-EM particle images."""

from sklearn_cryoem._version import __version__

__all__ = ["__version__"]
