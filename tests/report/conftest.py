"""Runs made up in no time: any number of classes, some of them junk, without a fit."""

import numpy as np
import pytest

from sklearn_cryoem import ParticleStack
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.plotting.convergence import Fit, Measure
from sklearn_cryoem.report.run import Run


def blobs(n_classes, box=32):
    """Averages of two or three blobs that turn from class to class; (n_classes, box, box)."""
    axis = np.arange(box) - box // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    turn = np.linspace(0, 2 * np.pi, n_classes, endpoint=False)[:, None, None]
    reach = 0.22 * box
    averages = np.exp(-(x**2 + y**2) / (0.02 * box**2))
    for phase, weight in ((0.0, 0.8), (2.1, 0.6)):
        shift_x, shift_y = reach * np.cos(turn + phase), reach * np.sin(3 * turn + phase)
        averages = averages + weight * np.exp(-((x - shift_x) ** 2 + (y - shift_y) ** 2) / (0.006 * box**2))
    return averages.astype(np.float32)


def make_run(n_classes=20, *, n_coordinates=2, n_junk=0, with_stack=True, with_quality=True, box=32, **facts):
    """A run of `n_classes` classes on a grid; the last `n_junk` are noise, and the very last one is empty."""
    rng = np.random.default_rng(0)
    averages = blobs(n_classes, box)
    averages[n_classes - n_junk :] = rng.normal(size=(n_junk, box, box))
    sizes = rng.integers(5, 60, n_classes)
    sizes[-1] = 0
    labels = np.repeat(np.arange(n_classes), sizes)
    nodes = _grid(n_classes, n_coordinates)
    keep = (sizes > 0) & (np.arange(n_classes) < n_classes - n_junk)
    resolution = np.where(sizes > 0, 40 - 0.4 * sizes, np.inf)
    order = np.lexsort((resolution, ~keep))
    quality = {
        "rank": np.argsort(order) + 1, "keep": keep, "snr": rng.uniform(0, 1, n_classes),
        "reasons": np.where(keep, "", "blurred: 8% of the information of a good class"),
    }  # fmt: skip
    stack = None
    if with_stack:
        noisy = averages[labels] + rng.normal(size=(len(labels), box, box))
        stack = ParticleStack(noisy.astype(np.float32), pixel_size=4.0)
    made = {
        "name": "made up", "averages": averages, "sizes": sizes, "resolution": resolution, "nodes": nodes,
        "source": {"folder": "out", "n_classes": n_classes, "started_at": "2026-01-31T12:00:00+00:00"},
        "folder": "out", "pixel_size": 4.0, "labels": labels, "stack": stack,
        "positions": nodes[labels] + 0.02 * rng.normal(size=(len(labels), n_coordinates)),
        "quality": quality if with_quality else None,
        "fits": [
            Fit(
                "Clustering", "converged after 4 iterations",
                [(Measure("log evidence", np.array([9.0, 7.0, 6.5, 6.0])),
                  Measure("resolution limit (Å)", np.array([40.0, 40.0, 20.0, 20.0]), True))],
                np.array([0, 0, 1, 1]), ("cross-fitted", "EM"),
            )
        ],
        "facts": [("Parameters", [("mask_diameter", "180 Å")])], "warnings": ["Look <at> this & that."],
    }  # fmt: skip
    return Run(**{**made, **facts})


def tree_of(sizes, n_first=3):
    """A tree that divides classes among `n_first` first ones; the last is kept whole."""
    parts = np.array_split(np.arange(len(sizes) - 1), n_first - 1)
    parts.append(np.array([len(sizes) - 1]))
    classes = [
        {
            "first_class": number, "n_images": int(sizes[part].sum()), "is_whole": len(part) == 1,
            "subclasses": [
                {"label": int(label), "n_images": int(sizes[label])}
                | ({} if len(part) == 1 else {"latent_position": [float(place)]})
                for place, label in enumerate(part)
            ],
        }
        for number, part in enumerate(parts)
    ]  # fmt: skip
    return {"n_images": int(sizes.sum()), "n_classes": len(sizes), "classes": classes}


def _grid(n_classes, n_coordinates):
    if n_coordinates == 1:
        return np.linspace(-1, 1, n_classes)[:, None]
    side = next(k for k in range(int(np.sqrt(n_classes)), 0, -1) if n_classes % k == 0)
    shape = (side, n_classes // side)
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.fixture
def run():
    """Twenty classes, three of them junk, the last one empty."""
    return make_run(20, n_junk=3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A finished run of the command line."""
    path = tmp_path_factory.mktemp("runs")
    words = ["--particles", "160", "--box", "32", "--snr", "0.5", "--max-shift", "15", "--jobs", "1", "-q"]
    assert main(["simulate", "-o", str(path / "sim"), *words]) == 0
    few = "--align-classes 4 --align-batches 3 --align-iterations 2 --classes 3x3 --iterations 4 --jobs 1 -q"
    assert (
        main(["classify", str(path / "sim" / "particles.star"), "-o", str(path / "out"), *few.split()]) == 0
    )
    return path / "out"
