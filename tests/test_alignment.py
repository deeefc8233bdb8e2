import copy
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from networks import CifarResNet
from shoal.alignment import align_, aligned, in_aligned_memory, is_aligned
from shoal.batches import Batch
from shoal.measure.latency import interleaved_latency
from shoal.preserve import copied
from shoal.sources import load_model
from shoal.store.checkpoint import load_checkpoint, save_checkpoint
from shoal.surgery import certify
from shoal.training.engine import Engine


def shift(path, remainder):
    """Rewrite a safetensors file with spaces in its header, so that its tensors begin at a remainder of 64."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    padding = (remainder - 8 - length) % 64
    header = content[8 : 8 + length] + b" " * padding
    path.write_bytes(struct.pack("<Q", length + padding) + header + content[8 + length :])
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + length) % 64 == remainder


def shifted(tensor, by=20):
    """The same values in memory that begins `by` bytes behind a multiple of 64."""
    place = torch.zeros(tensor.nbytes + 128, dtype=torch.uint8)
    first = (-place.data_ptr()) % 64 + by
    view = place[first : first + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return view.copy_(tensor)


def misalign_(model, by=20):
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.element_size() <= 4:
            tensor.data = shifted(tensor.detach(), by)
    assert not all(map(is_aligned, tensors(model)))
    return model


def tensors(model):
    return [*model.parameters(), *model.buffers()]


@pytest.fixture
def vit(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path, max_shard_size="6KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        shift(file, 8)
    return network


def test_a_hugging_face_network_lies_well_whatever_the_length_of_its_headers(vit, tmp_path):
    plain = type(vit).from_pretrained(tmp_path)
    assert not all(map(is_aligned, tensors(plain)))  # else this test would be no test
    loaded = load_model(f"hf:{tmp_path}").model
    assert all(map(is_aligned, tensors(loaded)))
    assert all(one.untyped_storage().resizable() for one in loaded.parameters())
    assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), vit.parameters(), strict=True))
    x = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, vit(x).logits)


def test_so_does_the_network_that_a_users_function_loads(vit, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from transformers import ViTForImageClassification\n"
        f"def build(): return ViTForImageClassification.from_pretrained({str(tmp_path)!r})\n"
    )
    assert all(map(is_aligned, tensors(load_model(f"{file}:build").model)))


@pytest.mark.parametrize("remainder", [0, 4, 8, 36, 60])
def test_weights_and_checkpoints_lie_well(remainder, tmp_path):
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    shift(tmp_path / "w.safetensors", remainder)
    if remainder:
        assert not all(map(is_aligned, load_file(tmp_path / "w.safetensors").values()))
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build(): return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))")
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "w.safetensors")}))
    for path in (tmp_path / "w.safetensors", index):
        model = load_model(f"{file}:build", path).model
        assert all(map(is_aligned, tensors(model)))
        assert torch.equal(model[0].weight, state["0.weight"])
    save_checkpoint(tmp_path / "c.safetensors", state, {})
    shift(tmp_path / "c.safetensors", remainder)
    kept, _ = load_checkpoint(tmp_path / "c.safetensors")
    assert all(map(is_aligned, kept.values()))
    assert all(torch.equal(kept[name], state[name]) for name in state)


@pytest.mark.parametrize("by", [4, 20, 36])
def test_values_objects_and_strides_stay(by):
    model = CifarResNet().to(memory_format=torch.channels_last)
    model.conv1.weight.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects, strides = [id(one) for one in tensors(model)], [one.stride() for one in tensors(model)]
    flags = [one.requires_grad for one in model.parameters()]
    for tensor in model.parameters():
        if tensor.dim() != 4:
            tensor.data = shifted(tensor.detach(), by)
    align_(model)
    assert all(map(is_aligned, tensors(model)))
    assert ([id(one) for one in tensors(model)], [one.stride() for one in tensors(model)]) == (objects, strides)
    assert [one.requires_grad for one in model.parameters()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_lies_well_is_not_moved():
    model = CifarResNet()
    places = [one.data_ptr() for one in tensors(model)]
    assert [one.data_ptr() for one in tensors(align_(model))] == places
    assert aligned(model.conv1.weight) is model.conv1.weight


def test_what_shares_memory_goes_on_sharing_it():
    whole = shifted(torch.arange(24.0))
    model = nn.Module()
    model.whole = nn.Parameter(whole)
    model.first, model.row = nn.Parameter(whole[:12].view(3, 4)), nn.Parameter(whole[4:8])
    model.register_buffer("spread", whole[:1].expand(5))
    model.register_buffer("apart", shifted(torch.ones(3)))
    model.tied = nn.Module()
    model.tied.weight = model.whole
    align_(model)
    assert all(map(is_aligned, (model.whole, model.first, model.apart, model.spread)))
    assert model.tied.weight is model.whole
    with torch.no_grad():
        model.whole[4] = -1
        model.whole[0] = -2
    assert model.first[1, 0] == model.row[0] == -1
    assert model.first[0, 0] == model.spread[4] == -2
    assert model.spread.stride() == (0,)
    assert torch.equal(whole, torch.arange(24.0))  # the old memory is nobody's any more


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int8, torch.complex64]
)
def test_every_dtype(dtype):
    model = nn.Module()
    values = torch.arange(12).to(dtype)
    model.register_buffer("values", shifted(values, 16))
    assert is_aligned(align_(model).values)
    assert torch.equal(model.values, values)


def test_what_is_no_plain_memory_is_left_alone():
    model = nn.Module()
    model.on_disk = nn.Parameter(torch.empty(3, device="meta"))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("empty", torch.empty(0))
    model.register_buffer("turned", torch.ones(3, dtype=torch.complex64).conj())
    before = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(tensors(align_(model)), before, strict=True))
    assert model.turned.is_conj()


def test_copies_lie_well():
    model = misalign_(CifarResNet())
    assert not all(map(is_aligned, tensors(copy.deepcopy(model))))  # a buffer's copy keeps its place
    assert all(map(is_aligned, tensors(copied(model))))
    assert all(map(is_aligned, tensors(Engine("cpu", "fp32").placed(model))))


def test_networks_are_compared_and_timed_where_they_lie_well_and_come_back_as_they_were():
    torch.manual_seed(0)
    model = CifarResNet().eval()
    twin = misalign_(copy.deepcopy(model))
    places = [one.data_ptr() for one in tensors(twin)]
    seen = []
    twin.register_forward_hook(lambda module, inputs, output: seen.append(all(map(is_aligned, tensors(module)))))
    batch = Batch((torch.rand(2, 3, 32, 32),))
    interleaved_latency({"a": twin}, batch, min_seconds=0.01, rounds=1)
    assert all(seen)
    seen.clear()
    assert certify(model, twin, [batch]).bitwise
    assert seen[-1]
    assert [one.data_ptr() for one in tensors(twin)] == places


def test_they_come_back_where_something_raises():
    model = misalign_(nn.Linear(3, 3))
    places = [one.data_ptr() for one in tensors(model)]

    def use():
        with in_aligned_memory(model):
            assert all(map(is_aligned, tensors(model)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert [one.data_ptr() for one in tensors(model)] == places


@pytest.mark.parametrize("by", [4, 20, 60])
def test_a_tensor_elsewhere_is_copied_and_one_that_lies_well_is_not(by):
    tensor = shifted(torch.randn(5, 3), by)
    assert not is_aligned(tensor)
    assert is_aligned(aligned(tensor))
    assert torch.equal(aligned(tensor), tensor)
    well = torch.randn(5, 3)
    assert aligned(well) is well
