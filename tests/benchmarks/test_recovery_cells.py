"""The benchmark with recovery runs as a whole, goes on from finished cells, and writes down what it was asked."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NETWORKS = Path(__file__).parents[1] / "networks.py"
FACTORIES = f"""
import importlib.util
import torch

spec = importlib.util.spec_from_file_location("cifar_networks", {str(NETWORKS)!r})
networks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(networks)


def large():
    torch.manual_seed(0)
    return networks.CifarResNet(2, 10, (4, 8, 16))


def small():
    torch.manual_seed(1)
    return networks.CifarResNet(1, 10, (4, 8, 16))
"""


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("recovery")
    for name in [name for name in sys.modules if name.split(".")[0] in ("rivals", "recovery")]:
        del sys.modules[name]


@pytest.fixture
def command(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": rng.integers(0, 255, (count, 3, 8, 8), np.uint8) if kind == "x" else np.arange(count) % 10
        for part, count in (("train", 80), ("test", 30))
        for kind in "xy"
    }
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "factories.py").write_text(FACTORIES)
    words = [f"{tmp_path}/factories.py:large", f"npz:{tmp_path}/data.npz", "--small", f"{tmp_path}/factories.py:small"]
    words += ["--budget", "6", "--points", "0.9", "--methods", "shoal,small,last-k", "--batch-size", "16"]
    words += ["--images", "64", "--longest", "2", "--work", f"{tmp_path}/work", "--out", f"{tmp_path}/out.json"]
    monkeypatch.setattr(sys, "argv", ["recovery.py", *words])
    return tmp_path / "out.json"


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on_from_its_cells(benchmark, command, capsys):
    benchmark.main()
    document = json.loads(command.read_text())
    assert "npz:data.npz" in document["command"]
    assert str(command.parent) not in document["command"]
    [row] = document["points"]
    assert list(row["cells"]) == ["shoal", "small", "last-k"]
    reached = [method for method, cell in row["cells"].items() if cell["reached"]]
    assert all("quality" in row["cells"][method] for method in reached)
    capsys.readouterr()
    benchmark.main()
    assert capsys.readouterr().out.count(": kept") == 3
    again = json.loads(command.read_text())["points"][0]["cells"]
    assert {method: cell.get("network") for method, cell in again.items()} == {
        method: cell.get("network") for method, cell in row["cells"].items()
    }
