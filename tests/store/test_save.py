import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import networks
import shoal
from shoal.errors import WeightsError
from shoal.plan import InputSpec, NetworkSignature, Plan, read_plan
from shoal.preserve import copied
from shoal.store.folder import EXTRAS, PLAN, RECORD, WEIGHTS
from shoal.store.save import copy_on_cpu, restore_weights, save, save_weights


class Tied(nn.Module):
    """One matrix reads the tokens and writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def same_state(a, b):
    one, other = a.state_dict(), b.state_dict()
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def test_weights_come_back_bitwise(tmp_path):
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet())
    other = networks.PreactNet()
    save_weights(model, tmp_path / WEIGHTS)
    restore_weights(other, tmp_path / WEIGHTS)
    same_state(model, other)


def test_tied_weights_stay_tied(tmp_path):
    model, other = Tied(), Tied()
    save_weights(model, tmp_path / WEIGHTS)
    restore_weights(other, tmp_path / WEIGHTS)
    same_state(model, other)
    assert other.head.weight is other.embed.weight


def test_tied_weights_of_another_precision_stay_tied(tmp_path):
    model, other = Tied().to(torch.bfloat16), Tied()
    save_weights(model, tmp_path / WEIGHTS)
    restore_weights(other, tmp_path / WEIGHTS)
    same_state(model, other)
    assert other.head.weight is other.embed.weight
    assert other.head.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_stays(tmp_path, dtype):
    model, other = networks.PreactNet().to(dtype), networks.PreactNet()
    other.stem.weight.requires_grad_(False)
    save_weights(model, tmp_path / WEIGHTS)
    restore_weights(other, tmp_path / WEIGHTS)
    same_state(model, other)
    assert other.blocks[0].bn1.num_batches_tracked.dtype == torch.int64
    assert isinstance(other.stem.weight, nn.Parameter)
    assert not other.stem.weight.requires_grad
    assert other.head.weight.requires_grad


def test_weights_that_do_not_lie_in_order(tmp_path):
    model, other = nn.Linear(4, 4), nn.Linear(4, 4)
    model.weight = nn.Parameter(torch.randn(4, 4).t())
    model.register_buffer("every_second", torch.arange(8.0)[::2])
    other.register_buffer("every_second", torch.zeros(4))
    assert not model.weight.is_contiguous()
    save_weights(model, tmp_path / WEIGHTS)
    restore_weights(other, tmp_path / WEIGHTS)
    same_state(model, other)
    convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    save_weights(convolution, tmp_path / WEIGHTS)
    assert torch.equal(load_file(tmp_path / WEIGHTS)["weight"], convolution.weight)


def test_the_file_is_plain_safetensors(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / WEIGHTS)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert set(file.metadata()) == {"format", "shoal-sha256"}


def test_another_networks_weights_are_refused_by_name(tmp_path):
    path = tmp_path / WEIGHTS
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    save_file({"weight": torch.zeros(2, 4), "gain": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="does not fit the network its plan describes") as caught:
        restore_weights(model, path)
    text = str(caught.value)
    assert "'bias' is missing" in text
    assert "'gain' is not expected" in text
    assert "'weight' is (2, 4), expected (2, 3)" in text
    assert "belong together" in text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_that_cannot_be_read(tmp_path):
    path = tmp_path / WEIGHTS
    with pytest.raises(WeightsError, match=r"cannot read '.*model.safetensors'"):
        restore_weights(nn.Linear(2, 2), path)
    save_weights(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsError, match=r"cannot read '.*model.safetensors'"):
        restore_weights(nn.Linear(2, 2), path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(WeightsError, match="cannot read"):
        restore_weights(nn.Linear(2, 2), path)


def test_saving_leaves_the_network_as_it_was(tmp_path):
    model = networks.PreactNet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    save_weights(model, tmp_path / WEIGHTS)
    assert model.training
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_save_writes_weights_and_plan(tmp_path):
    plan = Plan(
        inputs=[InputSpec(shape=[2], dtype="float32")], network=NetworkSignature(state={}, chain=[]), actions=[]
    )
    save(tmp_path, nn.Linear(2, 2), plan)
    assert {one.name for one in tmp_path.iterdir()} == {WEIGHTS, EXTRAS, PLAN, "README.md"}
    assert read_plan(tmp_path / PLAN) == plan
    assert json.loads((tmp_path / PLAN).read_text())["schema_version"] == 2
    assert not (tmp_path / RECORD).exists()


def test_a_copy_to_look_at_takes_no_memory_for_weights():
    model = copied(Tied()).train()
    twin = copy_on_cpu(model)
    assert not twin.training
    assert model.training
    assert twin.embed.weight is not model.embed.weight
    assert twin.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert twin.head.weight is twin.embed.weight


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from torch import nn
from shoal.errors import FolderError
from shoal.store.save import save_weights

path = Path(sys.argv[1])
save_weights(nn.Linear(2, 2), path)
old = path.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_weights(nn.Linear(100, 100), path)
except FolderError as error:
    assert "cannot write" in str(error), error
    assert "Free some space" in str(error), error
else:
    raise SystemExit("written in spite of the limit")
assert path.read_bytes() == old
assert [one.name for one in path.parent.iterdir()] == [path.name]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_disk_without_room_keeps_the_old_weights(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / WEIGHTS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / WEIGHTS
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    save_weights(network, path)
    sound = path.read_bytes()
    end = sound.rindex(b"}")
    for place in [*range(8 * 8, 8 * (end + 1), 7), *range(8 * (end + 8), 8 * len(sound), 7)]:
        altered = bytearray(sound)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(WeightsError):
            restore_weights(copy.deepcopy(network), path)
    path.write_bytes(sound)
    restore_weights(network, path)


def test_weights_written_by_something_else_are_read_without_a_digest(tmp_path):
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / WEIGHTS, metadata={"format": "pt"})
    restore_weights(nn.Linear(2, 2), tmp_path / WEIGHTS)


class WithoutValues(nn.Module):
    """A block with a table that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)

    def forward(self, x):
        return x + torch.relu(self.a(x))


def test_a_buffer_without_values_is_refused_by_name_and_nothing_is_written(tmp_path):
    net = nn.Sequential(WithoutValues(), WithoutValues(), nn.Linear(6, 3)).eval()
    config = shoal.CompressConfig(latency_seconds=0.02)
    result = shoal.compress(net, [torch.randn(8, 6)], shoal.RemoveBlocks(1), config=config)
    with pytest.raises(WeightsError, match=r"no values, .*'meta' device: '\d\.(base\.)?table'(.|\n)*Compute them"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(WeightsError, match=r"'0\.table', '1\.table'"):
        copy_on_cpu(net)
