"""What SMLClusterer.fit holds at each of its steps, in bytes: the most of them is the estimate.

K nodes, P features, Q columns of c^2, S shells, M weights a feature, F folds, W workers; a number of the data
has b bytes, 4 for images. A pass over the data holds templates (8 K P), what the data are multiplied with
(b K (P + Q)), the total of the sums (8 K (P + Q)), and sums of a shard (b K (P + Q)) for every worker and,
if there are several, one result that waits. Cross-fitted EM holds all of it F times, with Q = S. The steps
follow each other: nothing but templates, or weights, goes from one to the next.
Workers of a cluster hold templates and factors of their own, and what is on its way exists more than once.
"""

import numpy as np

from sklearn_cryoem._core.memory import Workers, bytes_at_once
from sklearn_cryoem.manifold.coupling import NARROWEST, TURN
from sklearn_cryoem.particles.features import AHEAD_BYTES, AHEAD_SHARE

LIBRARY_BYTES = 15e6  # modules loaded when they are first used, and what the allocator keeps of small arrays
PART_BYTES = 16e6  # of the images that are prepared together, and their transforms
TABLES = 3  # of a block's images and nodes: logs, and what becomes of them
LEFT_OVER = 0.5  # of the memory of images, which the allocator keeps for the next ones


def memory_needed(blocks, basis, n_jobs, n_folds=1, n_cross_shells=None, itemsize=4):
    """Bytes that a fit holds at most, beyond the images given.

    Parameters
    ----------
    blocks : Blocks
        The data.
    basis : LatentBasis
        Nodes and basis functions.
    n_jobs : int or None
        Number of workers.
    n_folds : int
        Folds of cross-fitted EM; 1 where there is none.
    n_cross_shells : int, optional
        Shells of cross-fitted EM; by default all.
    itemsize : int
        Bytes of a number of the data.
    """
    workers = Workers.of(n_jobs, prefer="threads")
    steps = _Steps(blocks.layout, basis, workers, itemsize)
    largest = max(steps.em(), steps.class_averages(), steps.images(getattr(blocks, "plane", None)))
    if n_folds > 1:
        largest = max(largest, steps.cross_fit(n_folds, n_cross_shells or steps.s))
    images, features, tables = _block(blocks, basis, itemsize)
    first_pass, later = images + features, LEFT_OVER * images + features + tables
    is_shared = workers.is_cluster or not workers.n_processes  # between workers, each of which keeps its own
    shares = 1.0 if is_shared else 0.5 * (1 + workers.n)  # of all blocks; more with every pass
    caches = shares * getattr(blocks, "cache_bytes", 0)
    here = max(workers.n * first_pass, workers.n * later + largest)
    return LIBRARY_BYTES + workers.own_bytes + caches + here


def _block(blocks, basis, itemsize):
    """What a worker has of a block: its images and the next one's, features that are not kept, its tables."""
    layout, n_rows = blocks.layout, -(-blocks.n_samples // len(blocks))
    per_image = itemsize * (layout.n_features + layout.n_norms)
    kept = getattr(blocks, "cache_bytes", 0) >= per_image * blocks.n_samples
    plane = getattr(blocks, "plane", None)
    ahead = bytes_at_once(AHEAD_BYTES, AHEAD_SHARE)
    images = 0.0 if plane is None else 2 * min(4.0 * n_rows * plane.box**2, ahead) + PART_BYTES
    return images, 0.0 if kept else per_image * n_rows, TABLES * itemsize * n_rows * len(basis.nodes)


class _Steps:
    """Bytes that each step holds, but for blocks and caches."""

    def __init__(self, layout, basis, workers, itemsize):
        self.b, self.basis, self.layout = itemsize, basis, layout
        self.k, self.p, self.q, self.s = len(basis.nodes), layout.n_features, layout.n_norms, layout.n_shells
        self.waiting = 1 if workers.n == 1 else workers.n + 1
        if workers.is_cluster:  # what was sent is there until it has been read
            self.waiting *= 2
        self.workers = workers
        self.templates = 8.0 * self.k * self.p
        self.weights = 8.0 * basis.phi.shape[1] * self.p + basis.phi.nbytes
        self.columns = self.k * (self.p + self.q)  # numbers of the sums of all images

    def em(self):
        """Pass and M-step of ordinary EM."""
        sums = 8.0 * self.columns
        in_pass = self.templates + self.b * self.columns * (1 + self.waiting) + sums
        in_pass += self._sent(self.templates + self.b * self.columns)
        squares = 8.0 * self.k * self.q  # of templates, for the noise
        return self.weights + max(in_pass, sums + 2 * self.weights + self.templates + squares)

    def cross_fit(self, n_folds, n_shells):
        """The same of cross-fitted EM; its M-step has the templates of before, and a total less each fold."""
        n_features = self.layout.truncate(n_shells).n_features
        columns, templates = self.k * (n_features + n_shells), 8.0 * self.k * n_features
        sums = 8.0 * columns * n_folds
        in_pass = n_folds * self.b * columns * (1 + self.waiting) + 8.0 * columns
        in_pass += self._sent(n_folds * (templates + self.b * columns))
        after = 2 * 8.0 * columns + templates * (n_folds + 1)
        return n_folds * templates + sums + max(in_pass, after) + self._coupling()

    def _sent(self, model):
        """A model of so many bytes in each worker of a cluster, packed and not, and thrice on its way."""
        return model * (3 + 2 * self.workers.n) if self.workers.is_cluster else 0.0

    def _coupling(self):
        """Functions that couple the nodes, of each shell where they are alike."""
        step = np.sqrt(4.0 * np.pi / self.k)
        finest = TURN / (np.pi * self.layout.diameter * NARROWEST * step)
        return 8.0 * self.k**2 * min(finest, self.s)

    def class_averages(self):
        """The last pass: sums of two halves, of which none waits."""
        shard = 2 * self.b * self.columns * self.workers.n
        return self.weights + self.templates + self.b * self.columns + 16.0 * self.columns + shard

    def images(self, plane):
        """Class averages and those of halves, made of the sums of the last pass."""
        if plane is None:
            return self.weights + 16.0 * self.columns + 5 * self.templates
        image = 4.0 * self.k * plane.box**2
        making = 2 * self.templates + 3 * image  # averages, spectra and what becomes of them
        return self.weights + 16.0 * self.columns + 4 * image + making
