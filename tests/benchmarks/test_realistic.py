"""What is counted on particles as hard as real ones: measures of known answers, and the whole, tiny."""

import json

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem.datasets import make_session

SETTING = (
    "--n 80 --box 32 --snr 1 --classes 4 --seeds 2 --align-classes 2 --align-batches 3 "
    "--align-iterations 1 --iterations 4"
).split()


@pytest.fixture
def realistic(benchmark):
    return benchmark("realistic")


@pytest.fixture(scope="module")
def session():
    return make_session(n_samples=600, box=16, random_state=0)


def perfect(realistic, truth, n_classes=20):
    """What a program would find that knows the truth: even cells of the sphere, and junk apart."""
    label = realistic.cells(truth[realistic.VIEW].fillna(1.0), n_classes)
    label[truth["is_junk"]] = n_classes
    return pd.DataFrame(
        {
            "label": label,
            "posterior": 1.0,
            "angle": truth["angle_rad"],
            "mirrored": False,
            "x": truth["shift_x"],
            "y": truth["shift_y"],
        }
    )


def test_the_truth_is_without_fault(realistic, session):
    truth = session.truth
    keep, defocus = ~truth["is_junk"].to_numpy(), session.ctf.defocus_u_angstrom
    found = realistic.measures(perfect(realistic, truth), keep, truth, defocus)
    assert found["common drift"] == pytest.approx(0.0, abs=1e-9)
    for name in ("centred 5 A", "centred 15 A", "junk purity", "precision", "recall", "recall, fifth 1"):
        assert found[name] == 1.0, name
    assert found["accuracy"] == pytest.approx(1.0, abs=0.05)
    assert found["information"] == pytest.approx(1.0)
    assert found["defocus share by chance"] == pytest.approx(19 / (keep.sum() - 1), rel=0.3)


def test_what_all_classes_are_displaced_by_is_the_drift_and_chance_is_nothing(realistic, session, rng):
    truth = session.truth
    found = perfect(realistic, truth)
    cos, sin = np.cos(found["angle"]), np.sin(found["angle"])
    found["x"] += cos * 12.0 + sin * -5.0  # R(-psi) (12, -5): the same in the frame of every class
    found["y"] += -sin * 12.0 + cos * -5.0
    found["label"] = rng.permutation(found["label"])
    result = realistic.measures(found, None, truth, session.ctf.defocus_u_angstrom)
    assert result["common drift"] == pytest.approx(13.0)
    assert result["centred 5 A"] == 0.0 and result["centred 15 A"] == 1.0
    assert result["information"] == pytest.approx(0.0, abs=0.03)
    assert result["accuracy"] < 0.35 and result["junk purity"] < 0.9
    assert "recall" not in result


@pytest.mark.filterwarnings("default")
def test_the_whole_on_a_tiny_set(run, volume, tmp_path):
    said = run("realistic", volume, *SETTING, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["runs"]) == ["seed 0", "seed 1"] and len(figures["agreement"]) == 1
    for found in figures["runs"].values():
        assert found["CPU s"] > 0 and 0 < found["centred 15 A"] <= 1 and 0 <= found["posterior"] <= 1
    assert "agreement between seeds" in said
