import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import FolderError, WeightsError
from shoal.store import checkpoint
from shoal.store.checkpoint import check_same_network, load_checkpoint, save_checkpoint


def test_everything_comes_back(tmp_path):
    path = tmp_path / "c.safetensors"
    tensors = {"model.a": torch.randn(2, 3), "random.cpu": torch.get_rng_state(), "scalar": torch.tensor(3)}
    save_checkpoint(path, tensors, {"epoch": 4, "gone": ["a.b"]})
    found, state = load_checkpoint(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (state["epoch"], state["gone"]) == (4, ["a.b"])


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    one = torch.randn(3)
    save_checkpoint(tmp_path / "c", {"a": one, "b": one}, {})
    assert torch.equal(load_checkpoint(tmp_path / "c")[0]["b"], one)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.ones(1)}, {"epoch": 1})

    def full(tensors, name, metadata=None):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(FolderError, match="No space left"):
        save_checkpoint(path, {"a": torch.zeros(1)}, {"epoch": 2})
    found, state = load_checkpoint(path)
    assert (float(found["a"]), state["epoch"]) == (1.0, 1)
    assert [one.name for one in tmp_path.iterdir()] == ["c"]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "torn").write_bytes(b"\x00" * 20)
    save_file({"a": torch.ones(1)}, str(tmp_path / "weights"))
    for name in ("torn", "weights", "missing"):
        with pytest.raises(WeightsError, match="no checkpoint"):
            load_checkpoint(tmp_path / name)


def test_another_version_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, str(tmp_path / "c"), metadata={"shoal-training": json.dumps({"version": 99})})
    with pytest.raises(WeightsError, match="another version"):
        load_checkpoint(tmp_path / "c")


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    here = {"a": "float32[2]", "b": "float32[3]"}
    check_same_network(tmp_path, {"network": here}, dict(here))
    with pytest.raises(WeightsError, match=r"another network: 'c' is missing in it; 'b' is not in the network"):
        check_same_network(tmp_path, {"network": here}, {"a": "float32[2]", "c": "float32[3]"})
    with pytest.raises(WeightsError, match=r"'a' is float32\[2\] in it, float32\[9\] here"):
        check_same_network(tmp_path, {"network": here}, {**here, "a": "float32[9]"})
