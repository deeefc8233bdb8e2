import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import FolderError, WeightsError
from shoal.files import tensors
from shoal.store.checkpoint import check_same_network, load_checkpoint, save_checkpoint


def test_everything_comes_back(tmp_path):
    path = tmp_path / "c.safetensors"
    state = {"model.a": torch.randn(2, 3), "random.cpu": torch.get_rng_state(), "scalar": torch.tensor(3)}
    save_checkpoint(path, state, {"epoch": 4, "gone": ["a.b"]})
    found, plain = load_checkpoint(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert (plain["epoch"], plain["gone"]) == (4, ["a.b"])


def test_tensors_that_share_memory_can_be_saved(tmp_path):
    one = torch.randn(3)
    save_checkpoint(tmp_path / "c", {"a": one, "b": one}, {})
    assert torch.equal(load_checkpoint(tmp_path / "c")[0]["b"], one)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.ones(1)}, {"epoch": 1})

    def full(_tensors, name, metadata=None):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(FolderError, match="No space left"):
        save_checkpoint(path, {"a": torch.zeros(1)}, {"epoch": 2})
    found, state = load_checkpoint(path)
    assert (float(found["a"]), state["epoch"]) == (1.0, 1)
    assert [one.name for one in tmp_path.iterdir()] == ["c"]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "torn").write_bytes(b"\x00" * 20)
    save_file({"a": torch.ones(1)}, str(tmp_path / "weights"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for name in ("torn", "weights", "missing", "folder", "pipe", "link"):
        with pytest.raises(WeightsError, match="no checkpoint"):
            load_checkpoint(tmp_path / name)


def test_another_version_is_refused(tmp_path):
    tensors.write_tensors(tmp_path / "c", {"a": torch.ones(1)}, {"shoal-training": json.dumps({"version": 99})})
    with pytest.raises(WeightsError, match="another version"):
        load_checkpoint(tmp_path / "c")


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    here = {"a": "float32[2]", "b": "float32[3]"}
    check_same_network(tmp_path, {"network": here}, dict(here))
    with pytest.raises(WeightsError, match=r"another network: 'c' is missing in it; 'b' is not in the network"):
        check_same_network(tmp_path, {"network": here}, {"a": "float32[2]", "c": "float32[3]"})
    with pytest.raises(WeightsError, match=r"'a' is float32\[2\] in it, float32\[9\] here"):
        check_same_network(tmp_path, {"network": here}, {**here, "a": "float32[9]"})


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.ones(3), "b": torch.arange(2)}, {"epoch": 1})
    sound = path.read_bytes()
    for place in range(8, len(sound), 3):
        altered = bytearray(sound)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        if sound[place] == ord(" ") and b"}" not in sound[place:]:
            continue  # what pads the header says nothing
        with pytest.raises(WeightsError):
            load_checkpoint(path)
