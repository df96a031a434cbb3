"""The page of faults and the tests agree: every row has a test that exists, every test a row."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "development" / "faults.md").read_text()


def rows():
    """Cells of the table, without its head."""
    return [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]


def held():
    """Tests named for each fault in the list below the table, as pairs of a file and a function."""
    listed = PAGE.split("## The tests", 1)[1]
    entries = re.findall(r"^- (.*):\n((?:  `.*`,?\n)+)", listed, re.MULTILINE)
    return {fault: re.findall(r"`([^`:]+)::(\w+)`", tests) for fault, tests in entries}


def functions(path):
    """Test functions of a file."""
    names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_every_row_says_what_is_seen_and_what_is_kept_and_names_its_tests_in_the_same_order():
    assert len(rows()) > 25
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows())
    assert list(held()) == [row[0].strip() for row in rows()]


def test_every_test_that_the_page_names_is_there():
    for fault, tests in held().items():
        assert tests, fault
        for file, name in tests:
            assert name in functions(ROOT / file), f"{fault}: {file} has no {name}"


def test_every_test_of_a_fault_has_a_row():
    named = {name for tests in held().values() for _, name in tests}
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        if path != Path(__file__):
            assert functions(path) <= named, f"{path.name}: {functions(path) - named}"
