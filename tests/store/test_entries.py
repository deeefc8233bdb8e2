from collections import OrderedDict

import pytest
import torch
from torch import nn

from shoal.store.entries import decode, encode, is_plain_tensor, special_entries


def there_and_back(value):
    kept = {}

    def keep(tensor):
        kept[f"t{len(kept)}"] = tensor
        return f"t{len(kept) - 1}"

    return decode(encode(value, keep), kept)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.25,
        "text",
        [1, [2.0, None]],
        (1, ("a", [False])),
        {"scale": 1.0, 3: (1, 2)},
        OrderedDict(a=1, b={"dtype": "not a dtype"}),
        {"tensor": "no tensor"},
        torch.qint8,
        torch.bfloat16,
    ],
)
def test_plain_data_comes_back_as_it_was(value):
    again = there_and_back(value)
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_tensors_come_back(dtype):
    tensor = torch.ones(2, 3).to(dtype)
    assert is_plain_tensor(tensor)
    ((again,), other) = there_and_back(([tensor], 1))
    assert other == 1
    assert again.dtype == dtype
    assert torch.equal(again.float(), tensor.float())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_quantised_tensors_come_back(dtype):
    x = torch.randn(4, 3)
    whole = torch.quantize_per_tensor(x, 0.1, 2, dtype)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([0, 1, 2, 3])
    rows = torch.quantize_per_channel(x, scales, zeros, 0, dtype)
    for tensor in (whole, rows):
        assert not is_plain_tensor(tensor)
        again = there_and_back(tensor)
        assert again.dtype == dtype
        assert again.qscheme() == tensor.qscheme()
        assert torch.equal(again.int_repr(), tensor.int_repr())
        assert torch.equal(again.dequantize(), tensor.dequantize())


@pytest.mark.parametrize(
    "value",
    [object(), {"a": {1, 2}}, [lambda: 0], torch.eye(3).to_sparse(), nn.Linear(1, 1), b"x"],
)
def test_anything_else_is_named(value):
    with pytest.raises(TypeError, match="a "):
        encode(value, lambda tensor: "")


@pytest.mark.parametrize("data", [{"strange": 1}, {"tensor": "missing"}, {"dtype": "os.system"}])
def test_damaged_data_is_refused(data):
    with pytest.raises((KeyError, ValueError)):
        decode(data, {})


def test_what_a_weights_file_does_not_hold():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": 2.0}

        def set_extra_state(self, state):
            pass

    assert special_entries(nn.Linear(2, 2)) == {}
    assert special_entries(nn.Sequential(Extra(2, 2))) == {"0._extra_state": {"scale": 2.0}}
