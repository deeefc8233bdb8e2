"""What a release needs: versions that agree, lowest versions for every dependency, a start that imports little."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_file_names_the_same_version():
    assert metadata.version("shoal") == PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == PROJECT["version"]


def test_every_dependency_has_a_lowest_version():
    lowest = runpy.run_path(str(ROOT / "scripts" / "lowest.py"))["constraints"]()
    assert f"torch=={re.search('torch>=([0-9.]+)', str(PROJECT['dependencies']))[1]}" in lowest
    named = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    named = [line for line in [*PROJECT["dependencies"], *named] if not line.startswith("shoal[")]
    assert all(">=" in line for line in named)
    assert len(lowest) == len({line.partition(">=")[0] for line in named})


@pytest.mark.parametrize("words", [("-c", "import shoal"), ("-m", "shoal", "compress", "--help")])
def test_a_start_imports_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "scipy", "matplotlib", "sklearn", "transformers", "jinja2", "yaml"}


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changes\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "Unreleased"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
