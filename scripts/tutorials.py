"""Run the tutorials and keep what they print: `python scripts/tutorials.py [NAME...]`.

Each notebook carries a digest of the code that its outputs came from, so that a test can tell outputs that are stale.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"


def digest(notebook: NotebookNode) -> str:
    """What its code is, as a digest."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n%%\n".join(code).encode()).hexdigest()


def run(notebook: NotebookNode) -> None:
    """Execute every cell in a folder of its own; the outputs are put into the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        options = {"timeout": None, "startup_timeout": 600, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, resources=place, **options).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say to stderr is of the machine
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["executed"] = digest(notebook)


def main() -> None:
    """Run all of them, or those named."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        began = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        run(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
