"""`classify --cache-folder`: the size is said, the folder filled once, a folder of no use an error."""

import pytest

from sklearn_cryoem import write_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import aligned_to_truth, make_particles

WORDS = "--skip-align --classes 2x2 --iterations 6 --jobs 1 --seed 0".split()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_prepared_images_are_kept_and_their_size_is_said(tmp_path, capsys):
    stack = aligned_to_truth(make_particles("ribosome", 60, box=24, snr=0.5, random_state=0))
    write_particles(stack, tmp_path / "p.star")

    def classify(output, folder):
        words = [
            "classify",
            tmp_path / "p.star",
            "-o",
            tmp_path / output,
            "--cache-folder",
            tmp_path / folder,
        ]
        status = main([str(word) for word in [*words, *WORDS]])
        return status, capsys.readouterr().err

    status, said = classify("first", "features")
    assert status == 0 and "Prepared features take" in said and "are free" in said
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.features")}
    status, said = classify("second", "features")
    assert status == 0 and "Prepared features take" not in said
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.features")}
    assert len(kept) == 1
    status, said = classify("third", "p.star")
    assert status != 0 and "Give a cache folder of your own" in said
