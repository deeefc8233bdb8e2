import os
import subprocess
import sys

import torch

from shoal.measure.machine import machine
from shoal.record import Machine


def test_machine_says_where_and_with_what():
    found = machine("cpu")
    assert found.device == "cpu"
    assert found.processor.strip()
    assert 1 <= found.cores <= os.cpu_count()
    assert found.threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert {"scipy", "numpy"} <= set(found.libraries)
    assert Machine.model_validate_json(found.model_dump_json()) == found


def test_machine_follows_the_thread_count():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert machine(torch.device("cpu")).threads == 1
    finally:
        torch.set_num_threads(before)


def test_machine_imports_no_optional_library():
    code = (
        "import sys; from shoal.measure.machine import machine; machine('cpu');"
        "sys.exit(any(name in sys.modules for name in ('torchvision', 'timm', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_machine_leaves_out_what_is_not_installed(monkeypatch):
    # By its name in sys.modules: the package re-exports a function of the same name.
    monkeypatch.setattr(sys.modules["shoal.measure.machine"], "_LIBRARIES", ("numpy", "no-such-library-anywhere"))
    assert set(machine("cpu").libraries) == {"numpy"}
