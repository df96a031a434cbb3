"""Progress of long work: a tqdm bar where somebody looks on, log lines elsewhere, silence unless asked."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

logger = logging.getLogger("sklearn_cryoem")

SECONDS_BETWEEN_LOG_LINES = 5.0
STEPS_TO_ESTIMATE = 3  # of a fit, that tell how long it will take


class Progress:
    """Counts `total` steps of `description`; use as a context manager.

    Parameters
    ----------
    total : int
        Number of steps.
    description : str
        What is being done, shown to the left.
    verbose : int or bool
        0 shows nothing. 1 or more shows a bar in a terminal or a notebook; where stderr goes elsewhere, or
        tqdm is missing, it logs at level INFO.
    on_step : callable or None
        Called with the number of steps whenever some are done, whatever is shown.
    costs : sequence of float or None
        What each step takes, in any unit, for the time that remains; nothing beyond its end, where work may
        go on for longer than expected. By default the same.
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        verbose: int | bool,
        on_step: Callable[[int], None] | None = None,
        costs: Sequence[float] | None = None,
    ) -> None:
        self._on_step = on_step
        self._total, self._description, self.n_done, self._note = total, description, 0, ""
        self._bar: Any = _bar(total, description) if verbose else None
        self._logs = bool(verbose) and self._bar is None
        self._cost = range(total + 1) if costs is None else [0.0, *accumulate(costs)]  # of so many steps
        self._estimate_at = math.inf if costs is None else STEPS_TO_ESTIMATE
        self._n_before = 0
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None and self.n_done < self._total:  # it ended early, as a fit does that converged
                self._bar.total = self.n_done  # or a notebook would show the bar of a failure
                self._bar.set_postfix_str(self._note)  # nothing remains
            self._bar.close()
        elif self._logs and kind is None:
            self._log()

    def resume(self, n: int) -> None:
        """Count `n` steps that were done before."""
        self._n_before = n
        self.update(n)
        self._began = time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the pace so far; None where there is none yet."""
        done, before = (self._cost[min(n, len(self._cost) - 1)] for n in (self.n_done, self._n_before))
        if done <= before:
            return None
        return (time.monotonic() - self._began) * (self._cost[-1] - done) / (done - before)

    def update(self, n: int = 1) -> None:
        """Count `n` more steps as done."""
        self.n_done += n
        if self._on_step is not None:
            self._on_step(n)
        if self._bar is not None:
            self._bar.set_postfix_str(self._left() + self._note, refresh=False)
            self._bar.update(n)
        elif self._logs and (
            self.n_done - self._n_before >= self._estimate_at
            or time.monotonic() - self._last_line > SECONDS_BETWEEN_LOG_LINES
        ):
            self._log()

    def note(self, text: str) -> None:
        """Show `text` (a resolution, an objective) to the right of the count."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(self._left() + text, refresh=False)

    def _left(self) -> str:
        left = self.seconds_left
        return "" if left is None or left < 1.0 else f"about {in_words(left)} left, "

    def _log(self) -> None:
        self._last_line, self._estimate_at = time.monotonic(), math.inf
        text = f"{self._left()}{self._note}".removesuffix(", ")
        logger.info("%s: %d of %d %s", self._description, self.n_done, self._total, text)


def in_words(seconds: float) -> str:
    """A time to two digits: 8 s, 50 min, 3.2 h."""
    for unit, length in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        if seconds < 90.0 * length or unit == "h":
            break
    number = seconds / length
    return f"{number:.1f} {unit}" if unit == "h" and number < 10.0 else f"{number:.0f} {unit}"


progress = Progress  # reads better where it is used: ``with progress(...) as bar``


def _bar(total: int, description: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm
    except ImportError:
        return None
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    if not (in_notebook or sys.stderr.isatty()):
        return None
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # its own estimate takes all steps alike
    return tqdm(total=total, desc=description, leave=True, dynamic_ncols=True, bar_format=shown)
