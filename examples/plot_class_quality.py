"""
Which classes to keep: quality, selection, report
=================================================

Many picks of an automatic picker are ice, carbon or empty. ``class_quality`` measures every class from its
particles and says which classes to keep, and why not the others. ``select_classes`` takes the particles of
these classes, and ``write_particles`` writes them for RELION or cryoSPARC.
"""

import tempfile
from pathlib import Path

import numpy as np

from sklearn_cryoem import MAPAligner, class_quality, read_particles, select_classes, write_particles
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.plotting import plot_class_averages
from sklearn_cryoem.report import report

# %%
# We simulate particles with 30 % junk and align them without a reference.
stack = make_particles(
    "ribosome", 600, box=32, snr=0.5, n_views=8, max_shift=20.0, junk_fraction=0.3, random_state=0
)
aligner = MAPAligner(10, n_batches=60, max_iter=6, random_state=0)
aligned = aligner.fit_transform(stack)

# %%
# The table has one row for each class. Rank 1 is the best; ``reasons`` says why a class is rejected.
table = class_quality(aligner, aligned)
print(table[["size", "resolution", "information", "rank", "keep", "reasons"]].to_string())

# %%
plot_class_averages(aligner, quality=table, numbers=True)

# %%
# We take the particles of the classes to keep, and compare with the truth.
good = select_classes(aligned, aligner.labels_, np.flatnonzero(table["keep"]))
junk = stack.truth["is_junk"].to_numpy()
left = good.truth["is_junk"].to_numpy()
print(f"junk before: {junk.mean():.1%} of {len(stack)} particles; after: {left.mean():.1%} of {len(good)}")
print(f"good particles kept: {np.sum(~left) / np.sum(~junk):.1%}")

# %%
# Classes can also be selected by eye, by clicks in one HTML page. ``page.save("report.html")`` writes it; as
# the last value of a notebook cell the page is shown.
page = report(aligner, aligned, quality=table)
print(page)

# %%
# The way to RELION and back. Particles that were simulated in memory need image files first; particles that
# were read from files already have them.
folder = Path(tempfile.mkdtemp())
with_files = make_particles("ribosome", 50, box=32, snr=0.5, path=folder / "images.mrcs", random_state=0)
write_particles(with_files, folder / "good.star", labels=np.zeros(50, dtype=int))
print((folder / "good.star").read_text()[:900])
print(len(read_particles(folder / "good.star")), "particles read again")
