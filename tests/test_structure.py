"""Every room of the source has its tests in a folder of the same name, and speaks the words of the field."""

import ast
import re
from collections import Counter
from pathlib import Path

import shoal

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "shoal"
# Names, or parts of names, that were given up for the words of the field; and the rooms where none of them is left.
RETIRED = frozenset(
    "album beside bent errand fated fates found given gone kept_mark likeness mended one said shelf sights tell told "
    "wanted".split()
)
TRANSLATED_ROOMS = ("blocks", "report", "surgery")


def rooms() -> list[Path]:
    return [path for path in sorted(SOURCE.iterdir()) if path.is_dir() and list(path.glob("*.py"))]


def test_every_room_has_tests_in_a_folder_of_its_name():
    missing = [room.name for room in rooms() if not list((TESTS / room.name).rglob("test_*.py"))]
    assert not missing, f"no tests of these rooms: {missing}"


def test_tests_stand_in_the_room_of_what_they_test():
    """A test file imports from its own room, or from the package alone; the tests of the commands run commands."""
    strangers = []
    for room in rooms():
        for path in (TESTS / room.name).rglob("test_*.py"):
            imported = set(re.findall(r"(?:from|import) shoal\.(\w+)", path.read_text(encoding="utf-8")))
            if imported and room.name not in {*imported, "cli"}:
                strangers.append(f"{path.relative_to(TESTS)} imports from {', '.join(sorted(imported))}")
    assert not strangers


def test_names_of_test_files_are_unique():
    files = (path for path in TESTS.rglob("*.py") if "fixtures" not in path.parts)
    counts = Counter(path.name for path in files if path.name != "conftest.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_retired_words_stay_retired():
    used = sorted(
        f"{path.relative_to(SOURCE)}:{line} {name}"
        for room in TRANSLATED_ROOMS
        for path in (SOURCE / room).rglob("*.py")
        for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name in RETIRED or set(name.lower().strip("_").split("_")) & (RETIRED - {"one"})
    )
    assert not used


def identifiers(tree: ast.AST) -> list[tuple[str, int]]:
    """Every name that a module binds, with its line; attributes of others are theirs to name."""
    bound: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            bound.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.append((node.id, node.lineno))
        elif isinstance(node, ast.keyword) and node.arg:
            bound.append((node.arg, node.value.lineno))
    return bound


def test_every_name_of_the_package_is_there():
    for name in shoal.__all__:
        assert getattr(shoal, name).__name__ == name
    assert shoal.Settings is shoal.MeasureConfig, "the name of version 0.1.0"
