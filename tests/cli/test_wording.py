"""Messages of the library name what can be typed: every hint at a parameter has its option."""

import ast
import re
from argparse import Namespace
from pathlib import Path

import pytest

import sklearn_cryoem
from sklearn_cryoem.cli import _wording
from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.main import parse
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.quality import check_particles

ROOT = Path(sklearn_cryoem.__file__).parent
NOT_SHOWN = {"cli", "plotting", "report", "physics", "metrics"}  # called with arguments of the commands' own
ONLY_IN_PYTHON = {  # what no command does, so that no message of it can be shown there
    "asynchronous", "basis_width", "checkpoint", "first", "found", "metadata_only", "n_angles", "n_rings",
    "noise", "start", "warm_start", "write_images",
}  # fmt: skip


def filled(node):
    """Text of a string; what is filled in is an estimator's name where it is one, else a quoted 1."""
    if isinstance(node, ast.Constant):
        return node.value
    parts = []
    for part in node.values:
        is_name = not isinstance(part, ast.Constant) and "__name__" in ast.unparse(part)
        parts.append(part.value if isinstance(part, ast.Constant) else "SMLClusterer" if is_name else "'1'")
    return "".join(parts)


def messages():
    """Every string of the library with a space in it, but docstrings."""
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT)
        if part.parts[0] in NOT_SHOWN or part.name in {"notices.py", "html.py"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)]  # docstrings
        inner += [
            c for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for c in ast.walk(n) if c is not n
        ]
        skipped = {id(node) for node in inner}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)
            if id(node) in skipped or not is_text or isinstance(node, ast.Attribute):
                continue
            if " " in filled(node):
                yield f"{part}:{node.lineno}", filled(node)


def test_every_hint_at_a_parameter_has_an_option():
    of_estimators = {word for words in _wording._OF_ESTIMATOR.values() for word in words}
    missing, n_messages = [], 0
    for place, text in messages():
        n_messages += 1
        shown = in_the_shell(text)
        hints = set(re.findall(r"(?<![\w-])([a-z]\w*)=(?!=)", shown)) - ONLY_IN_PYTHON
        named = any(owner in shown for owner in _wording._OF_ESTIMATOR)
        hints |= {word for word in re.findall(r"(?<![\w.-])\w+", shown) if named and word in of_estimators}
        if hints and not any(word in text for word in ("partial_fit", "EigenImages")):
            missing.append(f"{place}: {sorted(hints)} in {shown!r}")
    assert n_messages > 300 and not missing, "\n".join(missing)


def test_every_option_named_is_one_of_classify_deep_or_simulate(tmp_path):
    lines = {
        "classify": ["classify", "x.star", "-o", "out"],
        "deep": ["deep", "x.star", "-o", "out"],
        "simulate": ["simulate", "-o", "out"],
        "convert": ["convert", "x.star", "y.star"],
    }
    known = {name for line in lines.values() for name in vars(parse(line))}
    tables = [_wording._ANYWHERE, *_wording._OF_ESTIMATOR.values()]
    named = {option for table in tables for option in table.values() if option.startswith("--")}
    assert {option.strip("-=").replace("-", "_") for option in named} <= known


@pytest.mark.parametrize(
    ("command", "shown"), [("classify", "read with --normalise,"), ("info", "--normalise of classify,")]
)
def test_a_command_without_the_option_says_whose_it_is(command, shown, tmp_path):
    line = [command, str(tmp_path), *(["-o", "x"] if command == "classify" else [])]
    stack = make_particles("ribosome", 60, box=24, random_state=0)
    (finding,) = check_particles(sklearn_cryoem.ParticleStack(stack.read() + 40.0), warn=False)
    assert shown in in_the_shell(str(finding), parse(line))


def test_what_python_alone_can_do_is_left_out():
    for text, shown in [
        ("Raise max_iter or tol of second=.", "Raise max_iter."),
        ("Lower n_basis, lower basis_width, or raise alpha.", "Lower --basis."),
        ("Pass rescale=True, choose some with optics_groups=, or extract.", "Pass --rescale, or extract."),
        ("Read with ctf=False and permissive=True.", "Read with --no-ctf and --permissive."),
        ("topology='grid' or pixel_size=3.5", "--topology='grid' or --pixel-size=3.5"),
    ]:
        assert in_the_shell(text) == shown
    assert in_the_shell("pixel_size=3.5", Namespace(invert=True)) == "--pixel-size of classify=3.5"
