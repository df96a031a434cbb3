"""Options that stand beside messages of the library exist, and set the parameters that are named."""

import inspect

import pytest

import sklearn_cryoem
from sklearn_cryoem import estimators
from sklearn_cryoem.cli.console import Console, with_options
from sklearn_cryoem.cli.main import parse
from sklearn_cryoem.cli.options import OPTIONS_OF_ESTIMATORS, OPTIONS_OF_PARAMETERS
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import read_particles, write_particles
from sklearn_cryoem.quality import check_particles

LINES = {
    "classify": ["classify", "x.star", "-o", "out"],
    "deep": ["deep", "x.star", "-o", "out"],
}


def test_every_option_is_one_of_classify_or_deep_and_every_parameter_is_one_of_the_library():
    known = {name for line in LINES.values() for name in vars(parse(line))}
    taken = {
        name
        for function in (read_particles, write_particles, estimators.MAPAligner, estimators.SMLClusterer)
        for name in inspect.signature(function).parameters
    }
    assert set(OPTIONS_OF_PARAMETERS) - {"downsample"} <= taken
    for name, own in OPTIONS_OF_ESTIMATORS.items():
        of_estimator = set(inspect.signature(getattr(estimators, name)).parameters)
        assert set(own) - {"max_iter"} <= of_estimator, name  # max_iter may be that of second=
    for table in (OPTIONS_OF_PARAMETERS, *OPTIONS_OF_ESTIMATORS.values()):
        assert {option[2:].replace("-", "_") for option in table.values()} <= known


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("MAPAligner stopped at max_iter=5. Raise max_iter, or n_batches.",
         " (Options: --align-iterations for max_iter, --align-batches for n_batches.)"),
        ("SMLClusterer stopped at max_iter=5. Raise max_iter.", " (Option: --iterations for max_iter.)"),
        ("The parameter 'n_clusters' of SMLClusterer is", " (Option: --classes for n_clusters.)"),
        ("mask_diameter is 400", " (Option: --mask-diameter.)"),
        ("Read with ctf=False.", " (Option: --no-ctf for ctf.)"),
        ("an image_max_shift, max_iter and the ctf stay", ""),
        ("Read with invert=True (--invert).", ""),
    ],
)  # fmt: skip
def test_the_options_of_the_parameters_that_a_message_names_follow_it(message, hint):
    assert with_options(message) == message + hint


@pytest.mark.parametrize(("command", "hint"), [("classify", "--normalise.)"), ("info", "of classify.)")])
def test_a_command_without_the_option_says_whose_it_is(command, hint, tmp_path):
    line = [command, str(tmp_path), *(["-o", "x"] if command == "classify" else [])]
    stack = make_particles("ribosome", 60, box=24, random_state=0)
    (finding,) = check_particles(sklearn_cryoem.ParticleStack(stack.read() + 40.0), warn=False)
    text = with_options(str(finding), parse(line))
    assert hint in text and text.endswith(" [not-normalised]")
    console = Console(quiet=True)
    console.warn(text)
    assert console.notices == ["not-normalised"]
