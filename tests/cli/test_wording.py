"""Options that stand beside messages of the library exist, and set the parameters that are named."""

import inspect

import pytest

import sklearn_cryoem
from sklearn_cryoem import estimators
from sklearn_cryoem.cli.console import Console, with_options
from sklearn_cryoem.cli.main import parse
from sklearn_cryoem.cli.options import OPTIONS_OF_ESTIMATORS, OPTIONS_OF_PARAMETERS
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import duplicates, read_particles, write_particles
from sklearn_cryoem.quality import check_particles

LINES = {
    "classify": ["classify", "x.star", "-o", "out"],
    "deep": ["deep", "x.star", "-o", "out"],
    "select": ["select", "out"],
}


def test_every_option_is_one_of_these_commands_and_every_parameter_is_one_of_the_library():
    known = {name for line in LINES.values() for name in vars(parse(line))}
    taken = {
        name
        for function in (
            duplicates,
            read_particles,
            write_particles,
            estimators.MAPAligner,
            estimators.SMLClusterer,
        )
        for name in inspect.signature(function).parameters
    }
    assert set(OPTIONS_OF_PARAMETERS) - {"downsample"} <= taken
    for name, own in OPTIONS_OF_ESTIMATORS.items():
        of_estimator = set(inspect.signature(getattr(estimators, name)).parameters)
        assert set(own) - {"max_iter"} <= of_estimator, name  # max_iter may be that of second=
    for table in (OPTIONS_OF_PARAMETERS, *OPTIONS_OF_ESTIMATORS.values()):
        assert {option[2:].replace("-", "_") for option in table.values()} <= known


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("MAPAligner stopped at max_iter=5. Raise max_iter, or n_batches.",
         "MAPAligner stopped at --align-iterations 5. Raise --align-iterations, or --align-batches."),
        ("SMLClusterer stopped at max_iter=5.", "SMLClusterer stopped at --iterations 5."),
        ("The parameter 'n_clusters' of SMLClusterer is", "The parameter --classes of SMLClusterer is"),
        ("mask_diameter is 400, pass pixel_size= in A", "--mask-diameter is 400, pass --pixel-size in A"),
        ("Read with ctf=False,\n  or images_dir=.", "Read with --no-ctf, or --images-dir."),
        ("Use f(pixel_size=2), fewer (n_jobs)", "Use f(pixel_size=2), fewer (--jobs)"),
        ("an image_max_shift, max_iter and the ctf stay", "an image_max_shift, max_iter and the ctf stay"),
    ],
)  # fmt: skip
def test_the_parameters_that_a_message_names_are_called_by_their_options(message, shown):
    assert with_options(message) == shown


@pytest.mark.parametrize(
    ("command", "hint"),
    [("classify", "read with --normalise, or"), ("info", "--normalise (of classify), or")],
)
def test_a_command_without_the_option_says_whose_it_is(command, hint, tmp_path):
    line = [command, str(tmp_path), *(["-o", "x"] if command == "classify" else [])]
    stack = make_particles("ribosome", 60, box=24, random_state=0)
    (finding,) = check_particles(sklearn_cryoem.ParticleStack(stack.read() + 40.0), warn=False)
    text = with_options(str(finding), parse(line))
    assert hint in text and text.endswith(" [not-normalised]")
    console = Console(quiet=True)
    console.warn(text)
    assert console.notices == ["not-normalised"]
