"""What a user may rely on, and what the house style promises of every module."""

import ast
import doctest
import importlib
import importlib.resources
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sklearn_cryoem

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sklearn_cryoem"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PUBLIC_PACKAGES = ["datasets", "estimators", "io", "metrics", "particles", "plotting", "quality", "report"]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(sklearn_cryoem.__path__, prefix="sklearn_cryoem.")
    if not module.name.endswith("__main__")
)


def label(path):
    return path.relative_to(ROOT).as_posix()


def public_objects():
    for package in PUBLIC_PACKAGES:
        module = importlib.import_module(f"sklearn_cryoem.{package}")
        for name in module.__all__:
            yield pytest.param(getattr(module, name), id=f"{package}.{name}")


def test_the_top_level_holds_these_names_and_no_others():
    assert set(sklearn_cryoem.__all__) == {
        "CTFTable", "DeepClusterer", "MAPAligner", "ParticleStack", "Poses", "ProjectionClusterer",
        "RealigningClusterer", "SMLClusterer", "check_particles", "class_quality", "load_model",
        "read_particles", "save_model", "select_classes", "set_memory_limit", "write_particles",
        "__version__",
    }  # fmt: skip
    for name in sklearn_cryoem.__all__:
        assert getattr(sklearn_cryoem, name) is not None
        assert name in dir(sklearn_cryoem)
    with pytest.raises(AttributeError, match="has no attribute 'KMeans'"):
        sklearn_cryoem.KMeans  # noqa: B018


def signatures(thing):
    """Functions that a user of a public object calls, by their names."""
    if not inspect.isclass(thing):
        return {thing.__name__: thing} if inspect.isfunction(thing) else {}
    ours = [base for base in thing.__mro__ if base.__module__.startswith("sklearn_cryoem")]
    members = {name: value for base in reversed(ours) for name, value in vars(base).items()}
    plain = {
        name: value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        for name, value in members.items()
        if name == "__init__" or not name.startswith("_")
    }
    return {f"{thing.__name__}.{name}": value for name, value in plain.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("thing", list(public_objects()))
def test_public_signatures_are_typed(thing):
    for name, function in signatures(thing).items():
        signature = inspect.signature(function)
        untyped = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        ]
        assert not untyped, f"{name}: give {untyped} a type"
        assert signature.return_annotation is not signature.empty, f"{name}: say what it returns"


def test_type_checkers_are_told_that_there_are_types():
    assert importlib.resources.files("sklearn_cryoem").joinpath("py.typed").is_file()


def test_importing_is_light_and_pictures_are_not_imported_for_fitting():
    code = (
        "import sys, sklearn_cryoem; assert 'sklearn' not in sys.modules and 'numpy' not in sys.modules;"
        "from sklearn_cryoem import MAPAligner, SMLClusterer, read_particles;"
        "assert 'matplotlib' not in sys.modules and 'tqdm' not in sys.modules;"
        "import sklearn_cryoem.plotting; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("thing", list(public_objects()))
def test_public_things_say_what_they_take_and_return(thing):
    if not callable(thing):
        return
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()) >= 1 and text[0].isupper(), "no docstring"
    if inspect.isfunction(thing):
        parameters = [name for name in inspect.signature(thing).parameters if name not in ("args", "kwargs")]
        missing = [
            name for name in parameters if not re.search(rf"^\**[\w, *]*\b{name}\b[\w, *]*", text, re.M)
        ]
        assert not missing, f"parameters without a word in the docstring: {missing}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


# one container, one estimator and parallel work are one file each, a third of it docstrings
LONGEST = {
    "sklearn_cryoem/particles/stack.py": 410,
    "sklearn_cryoem/_core/parallel.py": 650,
    "sklearn_cryoem/_core/files.py": 370,
    "sklearn_cryoem/cli/results.py": 360,
    "sklearn_cryoem/particles/mrc_files.py": 370,
}
LONGEST_ESTIMATOR = 900


def longest(path):
    """Lines that a module may have."""
    return LONGEST_ESTIMATOR if path.parent.name == "estimators" else LONGEST.get(label(path), 350)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_modules_stay_readable(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= longest(path), f"{n_lines} lines; would two modules be clearer?"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_only_the_command_line_prints_and_nothing_pickles_or_asserts(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    if label(path) != "sklearn_cryoem/cli/console.py":
        assert "print" not in calls, "print in a library; use logging, or the console of the command line"
    assert not imports & {"pickle", "dill", "cloudpickle"}
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not asserts, f"assert is no validation (python -O drops it): lines {asserts}"


def test_the_version_is_the_same_wherever_it_must_be_repeated():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert set(re.findall(r"^ *version: (\S+)$", citation, re.M)) == {sklearn_cryoem.__version__}
