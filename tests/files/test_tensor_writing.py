import pytest
import torch
from safetensors import safe_open

from shoal.errors import FolderError
from shoal.files.tensors import write_tensors


def test_tensors_and_a_digest_in_a_plain_file(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "a", {"a": shared, "b": shared.t()}, {"format": "pt"})
    with safe_open(tmp_path / "a", "pt") as file:
        assert torch.equal(file.get_tensor("b"), shared.t())
        assert set(file.metadata()) == {"format", "shoal-sha256"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FolderError, match="cannot write"):
        write_tensors(tmp_path / "missing" / "a", {}, {})
