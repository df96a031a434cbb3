"""The README tells the truth: its commands are those that CI runs, its Python runs."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("install -q ", "install ")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def fresh_machine_commands():
    return [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("python3 -m venv")
    ]


def test_ci_runs_the_readmes_commands_letter_for_letter():
    commands = fresh_machine_commands()
    assert len(commands) == 2
    assert any("sklearn-cryoem demo" in command for command in commands)
    assert any("pytest" in command for command in commands)
    for command in commands:
        assert command in CI.splitlines(), f"README says {command!r}, .ci/run does not run it"


def test_every_picture_and_file_the_readme_names_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_command_of_the_readme_parses():
    from sklearn_cryoem.cli.main import build_parser

    lines = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("sklearn-cryoem ")
    ]
    assert lines
    for line in lines:
        words = re.sub(r"\s+#.*", "", line).split()[1:]
        assert build_parser().parse_args(words).command == words[0]


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"
)  # a toy set, few particles a class
def test_the_notebook_example_runs(tmp_path, monkeypatch):
    from sklearn_cryoem import write_particles
    from sklearn_cryoem.datasets import make_particles

    monkeypatch.chdir(tmp_path)
    stack = make_particles("ribosome", 150, box=24, snr=0.5, path="particles.mrcs", random_state=0)
    write_particles(stack, "particles.star")
    (snippet,) = blocks("python")
    snippet = re.sub(r"MAPAligner\(\d+", "MAPAligner(4, n_batches=5", snippet)
    snippet = re.sub(r"SMLClusterer\(\d+", "SMLClusterer(4", snippet).replace("n_jobs=2", "n_jobs=1")
    namespace = {}
    exec(compile(snippet, "README.md", "exec"), namespace)
    assert len(namespace["labels"]) == 150
    assert (tmp_path / "classified.star").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_imports_what_there_is(path):
    """The build of the documentation runs them, and fails if one of them does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sklearn_cryoem"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
