"""The code cites equations of docs/math.md, and cites all of them that it claims to implement."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MATH = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
EQUATIONS = re.findall(r"^\*\*\((\d+\.\d+)\)\*\*( \*planned\*)?", MATH, flags=re.MULTILINE)
CITATION = re.compile(r"Eqs?\.\s+((?:\(\d+\.\d+\)(?:\s*(?:-|,|and|to)\s*)?)+)")


def cited_numbers(text):
    """All equation numbers that `text` cites, ranges such as (3.2)-(3.4) filled in."""
    numbers = set()
    for group in CITATION.findall(text):
        for first, last in re.findall(r"\((\d+\.\d+)\)(?:\s*(?:-|to)\s*\((\d+\.\d+)\))?", group):
            chapter, start = map(int, first.split("."))
            stop = int(last.split(".")[1]) if last else start
            numbers |= {f"{chapter}.{index}" for index in range(start, stop + 1)}
    return numbers


@pytest.fixture(scope="module")
def citations():
    """File -> equation numbers, for every module of the package."""
    files = sorted((ROOT / "sklearn_cryoem").rglob("*.py"))
    return {
        file.relative_to(ROOT).as_posix(): cited_numbers(file.read_text(encoding="utf-8")) for file in files
    }


def test_numbers_are_read_as_a_person_reads_them():
    assert cited_numbers("Eq. (3.2)-(3.4), then Eq. (1.1) and Eqs. (2.1), (2.3)") == {
        "3.2", "3.3", "3.4", "1.1", "2.1", "2.3",
    }  # fmt: skip


def test_each_equation_has_one_number():
    numbers = [number for number, _ in EQUATIONS]
    assert len(numbers) >= 29, "docs/math.md lost its equations, or their form **(a.b)** changed"
    assert len(numbers) == len(set(numbers))


def test_every_cited_equation_exists(citations):
    known = {number for number, _ in EQUATIONS}
    lost = {file: sorted(numbers - known) for file, numbers in citations.items() if numbers - known}
    assert not lost, f"cited in code but not in docs/math.md: {lost}"


def test_every_implemented_equation_is_cited(citations):
    cited = set().union(*citations.values())
    missing = [number for number, planned in EQUATIONS if not planned and number not in cited]
    assert not missing, f"in docs/math.md, not marked planned, and cited nowhere: {missing}"


def test_no_planned_equation_is_cited(citations):
    planned = {number for number, mark in EQUATIONS if mark}
    early = {file: sorted(numbers & planned) for file, numbers in citations.items() if numbers & planned}
    assert not early, f"marked planned in docs/math.md but cited as implemented: {early}"
