"""The tutorials: their outputs are those of their code, nothing in them is of one machine, and they run."""

import ast
import importlib
import re
import runpy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "tutorials.py"))


def code_of(notebook):
    """The code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    """A tutorial, of a valid format."""
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == ["cnn", "language_model", "vanish", "vit"]


def test_the_outputs_are_those_of_the_code(notebook):
    assert notebook.metadata["executed"] == SCRIPT["digest"](notebook), "run `make tutorials`"
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    assert not [out for cell in code_of(notebook) for out in cell.outputs if out.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in code_of(notebook)) >= len(code_of(notebook)) / 2


def test_a_changed_cell_is_noticed(notebook):
    code_of(notebook)[-1].source += "\n1 + 1"
    assert notebook.metadata["executed"] != SCRIPT["digest"](notebook)


def test_nothing_in_them_is_of_one_machine(notebook):
    text = "\n".join(str(out.get("text", out.get("data", {}))) for cell in code_of(notebook) for out in cell.outputs)
    text = re.sub(r"[A-Za-z0-9+/=\\n]{200,}", "", text)  # pictures
    assert not re.search(r"(?:^|[\s\"'])/(?:\w+/)+\w|[A-Z]:\\\\|Warning|Traceback", text)


def test_their_imports_resolve(notebook):
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in code_of(notebook)))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs(notebook):
    pytest.importorskip("ipykernel")
    printed = [[out.output_type for out in cell.outputs] for cell in code_of(notebook)]
    SCRIPT["run"](notebook)
    assert [[out.output_type for out in cell.outputs] for cell in code_of(notebook)] == printed
