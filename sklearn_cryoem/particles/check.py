"""Looking at every image once, to find those that cannot be used."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._core.progress import progress
from sklearn_cryoem.particles.preprocess import TransformedSource
from sklearn_cryoem.particles.sources import ImageSource, bad_pixels

_BLOCK_BYTES = 32 * 2**20


def find_bad_images(source: ImageSource, *, verbose: int = 0) -> pd.DataFrame:
    """Read every image once, block by block, and list those that are constant or not finite.

    Parameters
    ----------
    source : ImageSource
        Where the images come from; preprocessing is left out.
    verbose : int
        Whether to show progress.

    Returns
    -------
    DataFrame
        Columns ``row`` (from 0), ``image`` (file and place) and ``problem``, one row for each bad image.
    """
    while isinstance(source, TransformedSource):
        source = source.source
    n_rows = max(1, _BLOCK_BYTES // max(1, source.box**2 * 4))
    found = []
    with progress(len(source), "checking images", verbose=verbose) as bar:
        for rows in row_blocks(len(source), n_rows):
            bad = bad_pixels(source.read(rows, check=False))
            found += [(rows.start + place, source.locate(rows.start + place), what) for place, what in bad]
            bar.update(rows.stop - rows.start)
    table = pd.DataFrame(found, columns=["row", "image", "problem"])
    return table.astype({"row": np.int64})
