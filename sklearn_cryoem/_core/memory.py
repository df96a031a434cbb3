"""Memory is stated before work starts."""

from __future__ import annotations

import logging


def format_bytes(n_bytes: float) -> str:
    """`n_bytes` in the unit a person would use: 1536 -> '1.5 kB' (powers of 1024)."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1024 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def log_estimate(logger: logging.Logger, what: str, n_bytes: float) -> None:
    """Log at INFO how much memory `what` is about to need."""
    logger.info("%s needs about %s of memory beyond the images given.", what, format_bytes(n_bytes))
