"""CONTRIBUTING says what the code does: its table of rooms is the import contract."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def contract() -> list[list[str]]:
    """The rooms of each floor, the highest first."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(rule for rule in tables["tool"]["importlinter"]["contracts"] if rule["type"] == "layers")["layers"]
    return [re.split(r"\s*\|\s*", layer) for layer in layers]


def test_the_table_of_rooms_is_the_import_contract():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(rows), 0, -1))
    assert [re.findall(r"(?:^| · )`(\w+)`:", rooms) for _, rooms in rows] == contract()


def test_every_room_is_in_the_contract():
    rooms = {path.stem for path in (ROOT / "src" / "shoal").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__main__", "__pycache__"} == {room for floor in contract() for room in floor}


def test_pages_link_to_pages_that_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
