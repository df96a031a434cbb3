"""The documentation tells the truth: its Python runs, its commands parse, its links lead somewhere."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if "decisions" not in page.parts and "_build" not in page.parts
)
PUBLIC_PACKAGES = ["datasets", "estimators", "io", "metrics", "particles", "plotting", "quality", "report"]


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def with_fewer_classes(code):
    """The same code for a small set: fewer classes, few mini-batches, and no processes to start."""
    code = re.sub(r"MAPAligner\(\d+", "MAPAligner(6, n_batches=5", code)
    code = re.sub(r"SMLClusterer\(\d+", "SMLClusterer(6", code)
    return code.replace("n_jobs=2", "n_jobs=1")


NEEDS_A_CLUSTER = (
    DOCS / "cluster.md"
)  # a scheduler at an address: its own tests are tests/_core/test_cluster.py
TUTORIAL = DOCS / "tutorial.md"  # runs as it is written: its test is tests/docs/test_examples.py
WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page not in (NEEDS_A_CLUSTER, TUTORIAL)]


def test_the_python_of_the_cluster_page_compiles_and_imports_what_there_is():
    for block in blocks(NEEDS_A_CLUSTER, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sklearn_cryoem"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # toys: few particles a class
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    from sklearn_cryoem import write_particles
    from sklearn_cryoem.datasets import make_particles

    monkeypatch.chdir(tmp_path)
    stack = make_particles("ribosome", 120, box=24, snr=1.0, n_views=5, path="particles.mrcs", random_state=0)
    write_particles(stack, "particles.star")
    namespace = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(with_fewer_classes(block), f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
def test_the_commands_of_a_page_parse(page):
    from sklearn_cryoem.cli.main import build_parser

    for line in "".join(blocks(page, "bash")).splitlines():
        words = re.sub(r"\s+#.*", "", line).split()
        if words[:1] == ["sklearn-cryoem"] and not words[1].startswith("-"):
            assert build_parser().parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```|\$[^$]+\$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        path = (page.parent / target).resolve()
        if "auto_examples" in path.parts:  # made from examples/ when the pages are built
            path = ROOT / "examples" / f"{path.stem}.py" if path.stem != "index" else ROOT / "examples"
        assert path.exists(), target


def test_the_files_that_maintainers_pages_name_are_there():
    pages = [DOCS / "architecture.md", *(DOCS / "development").rglob("*.md")]
    for page in pages:
        for name in re.findall(r"`([\w./]+/[\w./]*\.py)(?:::\w+)?`", page.read_text("utf-8")):
            assert (ROOT / name).exists() or (ROOT / "sklearn_cryoem" / name).exists(), f"{page.name}: {name}"


def test_the_reference_names_every_public_thing_once():
    text = (DOCS / "api.rst").read_text(encoding="utf-8")
    named = re.findall(r"^   ([\w.]+)$", text, re.MULTILINE)
    assert len(named) == len(set(named))
    found = {name.rsplit(".", 1)[-1]: name for name in named}
    package = importlib.import_module("sklearn_cryoem")
    public = [*package.__all__]
    for part in PUBLIC_PACKAGES:
        public += importlib.import_module(f"sklearn_cryoem.{part}").__all__
    missing = sorted({*public} - {*found, "__version__"})
    assert not missing, f"public, and missing in docs/api.rst: {missing}"
    for path in named:
        thing = package
        for part in path.split("."):
            thing = getattr(thing, part)


def test_every_command_has_its_help_in_the_reference():
    from sklearn_cryoem.cli.main import build_parser

    listed = re.findall(
        r"^```\{command-help\} ([\w-]+)$", (DOCS / "command_line.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(build_parser().commands)


def test_the_page_of_what_is_checked_gives_the_ranges_of_the_code():
    from sklearn_cryoem.io.checks import RANGES

    text = (DOCS / "guide" / "reading.md").read_text("utf-8")
    said = re.findall(r"^\| (.+?) \| (\S+ to \S+) \| (\S+ to \S+) \|$", text, re.MULTILINE)
    expected = [
        (
            r.what + (f" ({r.unit})" if r.unit else ""),
            *(f"{low:,g} to {high:,g}" for low, high in (r.possible, r.usual)),
        )
        for r in RANGES.values()
    ]
    assert said == expected


def messages_of_warnings():
    """Text of every `warn` that has no short name, without its numbers."""
    for path in sorted((ROOT / "sklearn_cryoem").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("warn", "warn_and_keep"):
                told = [node for argument in call.args for node in ast.walk(argument)]
                parts = [node.value for node in told if isinstance(node, ast.Constant)]
                message = "".join(part for part in parts if isinstance(part, str))
                if message:  # not where a message is handed on
                    yield path.name, message


def test_every_warning_has_an_entry_and_every_entry_a_warning():
    text = (DOCS / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    entries = re.findall(r'^"(.+?)".*\n: ', text, re.MULTILINE)
    messages = list(messages_of_warnings())
    assert len(entries) >= 6 and len(messages) >= 6
    for file, message in messages:
        plain = message.replace("=", "")
        assert any(entry in plain for entry in entries), f"no entry for the warning of {file}: {message}"
    for entry in entries:
        assert any(entry in message.replace("=", "") for _, message in messages), f"no warning says {entry!r}"


def test_every_notice_has_an_entry_with_meaning_and_remedy_and_every_entry_a_notice():
    text = (DOCS / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^`([a-z-]+)`\n: ((?:.+\n)+)", text, re.MULTILINE))
    assert all("**Do:** " in entry and entry.endswith(".\n") for entry in entries.values())
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "sklearn_cryoem").rglob("*.py")]
    named = r"(?:notify|notice_text|Finding)\(\s*\"([a-z-]+)\""
    assert {name for source in sources for name in re.findall(named, source)} <= set(entries)
    assert [name for name in entries if not any(f'"{name}"' in source for source in sources)] == []


# ---------------------------------------------------------------- pictures of the conventions
@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_conventions", DOCS / "draw_conventions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def centre_of_mass(image):
    weight = np.clip(image - np.median(image), 0, None)
    axis = np.arange(len(image)) - len(image) // 2
    return np.array([(weight.sum(axis=0) * axis).sum(), (weight.sum(axis=1) * axis).sum()]) / weight.sum()


def test_pictures_of_the_conventions_show_what_is_said(drawing):
    average, (x, y) = drawing.particles(), drawing.OFFSET
    moved = centre_of_mass(drawing.particles(0.0, (x, y))) - centre_of_mass(average)
    np.testing.assert_allclose(moved, [-x, -y], atol=0.2)  # adding the shift brings it back
    before, after = (np.arctan2(*centre_of_mass(image)[::-1]) for image in (average, drawing.particles(40.0)))
    assert np.degrees(before - after) % 360 == pytest.approx(
        40, abs=2
    )  # counter-clockwise of its class average
    again = drawing.undone(drawing.particles(drawing.PSI_DEGREES, drawing.OFFSET))
    assert np.corrcoef(again.ravel(), average.ravel())[0, 1] > 0.97


def test_pictures_of_the_conventions_can_be_drawn_again(drawing, tmp_path):
    for draw in (drawing.draw_axes, drawing.draw_pose, drawing.draw_ctf):
        draw(tmp_path)
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(path.name for path in (DOCS / "images").glob("conventions_*.png"))
