"""The tests mirror the source by name, so that whoever changes a file finds its tests."""

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "shoal"


def test_every_module_has_tests_of_its_name():
    tests = {path.name for path in TESTS.rglob("test_*.py")}
    missing = [
        str(path.relative_to(SOURCE))
        for path in sorted(SOURCE.rglob("*.py"))
        if not path.name.startswith("__") and "cli" not in path.relative_to(SOURCE).parts
        if f"test_{path.name}" not in tests and _does_something(path)
    ]
    assert not missing, f"no test file of this name: {missing}"


def _does_something(path):
    """Whether a module holds a function: one that only names the fields of a value has nothing to test."""
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_tests_stand_in_the_room_of_what_they_test():
    rooms = {path.stem: path.parent.name for path in SOURCE.glob("*/*.py") if not path.name.startswith("__")}
    strangers = [
        str(path.relative_to(TESTS))
        for path in TESTS.glob("*/test_*.py")
        if rooms.get(path.stem.removeprefix("test_"), path.parent.name) != path.parent.name
    ]
    assert not strangers, f"in another room than the module of this name: {strangers}"


def test_names_of_test_files_are_unique():
    counts = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in counts.items() if count > 1] == []
