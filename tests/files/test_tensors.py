import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import WeightsError
from shoal.files.tensors import DIGEST, digest_of_tensors, read_tensors

DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)


def read(path, **changes):
    return read_tensors(path, WeightsError, "damaged", "Fetch it again.", **changes)


def test_all_kinds_of_tensors_have_a_digest(tmp_path):
    tensors = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "a", metadata={DIGEST: digest_of_tensors(tensors, {})})
    found, metadata = read(tmp_path / "a", sealed=True)
    assert set(metadata) == {DIGEST}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found.values())


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(4), "b": torch.ones(1)},
        {"a": torch.ones(2, 2), "b": torch.ones(1)},
        {"a": torch.ones(4).half(), "b": torch.ones(1)},
        {"a": torch.ones(4), "c": torch.ones(1)},
        {"a": torch.ones(4)},
        {"a": -torch.zeros(4), "b": torch.ones(1)},
    ],
)
def test_other_tensors_have_another_digest(tmp_path, other):
    tensors = {"a": torch.ones(4), "b": torch.ones(1)}
    digest = digest_of_tensors(tensors, {"x": "y"})
    assert digest_of_tensors(other, {"x": "y"}) != digest
    assert digest_of_tensors(tensors, {"x": "z"}) != digest
    save_file(other, tmp_path / "a", metadata={DIGEST: digest, "x": "y"})
    with pytest.raises(WeightsError, match=r"damaged: it was altered or damaged after it was written"):
        read(tmp_path / "a")


def test_a_file_of_others_has_none(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a")
    assert read(tmp_path / "a")[1] == {}
    with pytest.raises(WeightsError, match="damaged"):
        read(tmp_path / "a", sealed=True)
