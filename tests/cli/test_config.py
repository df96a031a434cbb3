"""Runs that are repeated from their run.yaml; SIGTERM; completion."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import starfile
import yaml

from sklearn_cryoem import load_model, read_particles
from sklearn_cryoem._core.validation import ParticleDataWarning
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.cli.main import parse as parsed
from sklearn_cryoem.cli.run_folder import run_text

FEW = "--align-classes 2 --align-batches 2 --align-iterations 1 --classes 2x2 --iterations 2 --jobs 1".split()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sim") / "sim"
    words = ["--particles", "60", "--box", "24", "--snr", "0.5", "--jobs", "1", "--quiet"]
    assert run("simulate", "-o", folder, *words) == 0
    return folder


# ---------------------------------------------------------------- the same run again
def test_a_run_is_repeated_to_the_bit_from_its_own_parameters(simulated, tmp_path, monkeypatch):
    monkeypatch.chdir(simulated)
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--seed", "3", "--max-resolution", "40", "--topology", "torus", "--mirror", *FEW]
    assert run("classify", "particles.star", "-o", first, "--quiet", *words) == 0
    monkeypatch.chdir(tmp_path)
    assert run("classify", "--config", first / "run.yaml", "-o", second, "--quiet") == 0
    for name in ("class_averages.mrcs", "alignment_averages.mrcs", "quality.csv"):
        assert (first / name).read_bytes()[1024:] == (second / name).read_bytes()[1024:]
    assert (first / "run.yaml").read_text() == (second / "run.yaml").read_text()
    models = [load_model(folder / "model.npz") for folder in (first, second)]
    np.testing.assert_array_equal(models[0][-1].weights_, models[1][-1].weights_)
    assert models[1][-1].topology == "torus" and models[1][0].mirror
    options = [json.loads((folder / "summary.json").read_text())["options"] for folder in (first, second)]
    assert options[1]["seed"] == 3 and options[1]["classes"] == [2, 2]


def test_simulations_are_repeated_too(simulated, tmp_path):
    config = simulated / "run.yaml"
    assert run("simulate", "--config", config, "-o", tmp_path / "again", "--quiet") == 0
    name = "particles.mrcs"
    assert (tmp_path / "again" / name).read_bytes()[1024:] == (simulated / name).read_bytes()[1024:]
    assert run("simulate", "--config", config, "-o", tmp_path / "few", "--particles", "7", "--quiet") == 0
    assert len(read_particles(tmp_path / "few" / "particles.star")) == 7


def test_the_command_line_goes_before_the_file(tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(
        "particles: a.star\nclasses: [3, 4]\nmask-diameter: 200\nskip_align: true\nno_ctf: false\nseed:\n"
        "output: out\n"
    )
    options = parsed(["classify", "--config", str(config)])
    assert (options.particles, options.output) == (Path("a.star"), Path("out"))
    assert (options.classes, options.mask_diameter) == ((3, 4), 200.0)
    assert options.skip_align and not options.no_ctf and options.seed == 0
    options = parsed(["classify", "b.star", f"--config={config}", "-o", "x", "--classes", "50"])
    assert (options.particles, options.output, options.classes) == (Path("b.star"), Path("x"), 50)
    with pytest.raises(SystemExit):
        parsed(["classify", "b.star", "c.star", f"--config={config}"])
    config.write_text("classes: [4, 8]\n")  # a list ends with the file
    options = parsed(["choose", "--config", str(config), "b.star", "-o", "x"])
    assert (options.particles, options.classes) == (Path("b.star"), [4, 8])
    options = parsed(["choose", "b.star", "--config", str(config), "-o", "x"])
    assert (options.particles, options.classes) == (Path("b.star"), [4, 8])


def test_lists_and_numbers_survive(tmp_path):
    options = {
        "volume": [Path("/a b/c.mrc"), Path("/d.mrc")],
        "defocus": [1e-5, 2.5e4],
        "box": 64,
        "phantom": None,
    }
    content = yaml.safe_load(run_text("simulate", options))
    assert content["volume"] == ["/a b/c.mrc", "/d.mrc"] and content["phantom"] is None
    (tmp_path / "run.yaml").write_text(run_text("simulate", options))
    again = parsed(["simulate", "--config", str(tmp_path / "run.yaml"), "-o", "x"])
    assert (again.volume, again.defocus, again.box) == (options["volume"], [1e-5, 2.5e4], 64)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("clases: 100\n", "'clases' is no option of classify; did you mean classes? See classify --help"),
        ("xyz: 100\n", "'xyz' is no option of classify. See classify --help"),
        ("command: deep\n", "is for the command deep, not classify. Use sklearn-cryoem deep --config"),
        ("just text\n", "holds no options. Write one a line, such as classes: 100"),
        ("", "holds no options"),
        ("a: [1\n", "is no YAML file"),
        ("skip_align: maybe\n", "skip_align is 'maybe', expected true or false"),
        ("classes: {a: 1}\n", "expected a value or a list"),
    ],
)
def test_files_that_cannot_be_used_say_so(text, remedy, tmp_path, capsys):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    assert run("classify", "a.star", "--config", path, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and remedy in error
    assert not (tmp_path / "out").exists()


def test_values_are_checked_as_on_the_command_line(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("classes: ten\n")
    with pytest.raises(SystemExit):
        run("classify", "a.star", "--config", tmp_path / "my.yaml", "-o", "out")
    assert "'ten' is not a whole number" in capsys.readouterr().err
    assert run("classify", "a.star", "--config", tmp_path / "no.yaml", "-o", "out") == 2
    assert "no.yaml cannot be read (No such file or directory). Check the path" in capsys.readouterr().err


def test_without_pyyaml_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert run("classify", "a.star", "--config", tmp_path / "my.yaml", "-o", "out") == 2
    assert "pip install 'sklearn-cryoem[cli]'" in capsys.readouterr().err


# ---------------------------------------------------------------- options
def test_the_shape_of_the_manifold_and_the_search_round_known_angles_are_options(simulated, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--angle-range", "6", *FEW, "--quiet"]
    shaped = ["--topology", "sphere", *FEW, "--classes", "12", "--quiet"]
    assert run("classify", simulated / "particles.star", "-o", first, *words) == 1
    assert "--angle-range" in capsys.readouterr().err and not first.exists()
    assert run("classify", simulated / "particles.star", "-o", first, *shaped) == 0
    model = load_model(first / "model.npz")[-1]
    assert model.topology == "sphere" and (first / "atlas.png").exists()
    again = ["--skip-align", "--images-dir", simulated, "--latent-dim", "3", *shaped]
    assert run("classify", first / "particles.star", "-o", tmp_path / "again", *again) == 1
    words += ["--images-dir", simulated, "--topology", "ring", "--classes", "12"]
    assert run("classify", first / "particles.star", "-o", second, *words) == 0
    angles = [read_particles(f / "particles.star", images_dir=simulated).poses for f in (first, second)]
    turned = np.angle(np.exp(1j * (angles[1].angle_rad - angles[0].angle_rad)))
    assert np.rad2deg(np.abs(turned)).max() <= 6.1
    with pytest.raises(SystemExit):
        run("classify", "a.star", "-o", "x", "--angle-range", "200")


# ---------------------------------------------------------------- info
def test_info_shows_mirrors_and_what_looks_wrong(simulated, tmp_path, capsys):
    text = (simulated / "particles.star").read_text()
    rows = [line for line in text.splitlines() if "@particles.mrcs" in line]
    n_labels = text.rpartition("loop_")[2].count("\n_")
    mirrored = text
    for row in rows:
        mirrored = mirrored.replace(row, f"{row} 30.0 1.0 2.0 {int(row is not rows[0])}")
    labels = ["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnIsFlip"]
    added = "".join(f"_{label} #{n_labels + place}\n" for place, label in enumerate(labels, start=1))
    path = simulated / "mirrored.star"
    path.write_text(
        mirrored.replace(rows[0], added + rows[0], 1).replace(f"{added}{rows[0]}", f"{added}{rows[0]}")
    )
    assert run("info", path) == 0
    out = capsys.readouterr()
    assert " mirrored particles 59 " in " ".join(out.out.split()) and out.err == ""
    assert "nothing looks wrong" in out.out
    assert run("info", "--json", "--no-checks", path) == 0
    assert "checks" not in json.loads(capsys.readouterr().out)


def test_info_lists_what_reading_the_file_warned_of(simulated, tmp_path, capsys):
    blocks = starfile.read(simulated / "particles.star")
    blocks["particles"] = blocks["particles"].assign(rlnCtfFigureOfMerit=0.01, rlnCtfMaxResolution=15.0)
    starfile.write(blocks, tmp_path / "poor.star")
    words = ["info", tmp_path / "poor.star", "--images-dir", simulated]
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert re.search(r"checks +ctf-fit-poor\n", out) and "figure of merit 0.010" in err
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["checks"] == ["ctf-fit-poor"]


def test_info_warns_of_the_wrong_ctf(shared_data, capsys):
    assert run("info", "--json", shared_data / "betagal" / "Extract" / "job009" / "particles.star") == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["checks"] == ["ctf-fit-poor", "blank-edges", "ctf-does-not-fit"]
    assert out.err.count("warning: ") == 3 and "[ctf-fit-poor]" in out.err and "Estimate the CTF" in out.err
    assert run("info", "--json", shared_data / "betagal" / "particles_ctf_corrected.star") == 0
    assert json.loads(capsys.readouterr().out)["checks"] == ["blank-edges"]  # 158 are padded


# ---------------------------------------------------------------- the end of a process, and the shell
@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="no SIGTERM on this system")
def test_a_run_that_is_terminated_leaves_no_folder(simulated, tmp_path):
    words = [
        "classify",
        str(simulated / "particles.star"),
        "-o",
        str(tmp_path / "out"),
        "--align-iterations",
        "500",
    ]
    words += ["--align-batches", "10000", "--align-classes", "8", "--classes", "9", "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sklearn_cryoem.cli", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.0)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143, error
    assert "terminated. Files already written are whole" in error
    assert not (tmp_path / "out").exists()


def test_shells_complete_commands_and_options():
    pytest.importorskip("argcomplete", reason="argcomplete is not installed, so shells complete nothing")
    code = "import sys; from sklearn_cryoem.cli.main import main; sys.exit(main())"
    for line, wanted in (("sklearn-cryoem cl", "classify"), ("sklearn-cryoem classify --topo", "--topology")):
        environment = {
            **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
            "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull,
        }  # fmt: skip
        environment["_ARGCOMPLETE_STDOUT_FILENAME"] = "/dev/stdout"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and wanted in done.stdout


def test_warnings_of_the_library_are_told_once(simulated, tmp_path, capsys):
    side = 24 * read_particles(simulated / "particles.star").pixel_size
    words = ["--mask-diameter", f"{0.99 * side:.1f}", *FEW]
    assert run("classify", simulated / "particles.star", "-o", tmp_path / "out", *words) == 0
    assert capsys.readouterr().err.count("[box-too-tight]") == 1
    warned = json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]
    assert sum("[box-too-tight]" in text for text in warned) == 1 and "--mask-diameter" in warned[0]
    assert issubclass(ParticleDataWarning, UserWarning)
