import copy
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import networks
import shoal
from shoal.batches import Batch
from shoal.errors import (
    ConsentError,
    FolderError,
    ModelRaisedError,
    PlanError,
    SpecError,
    UnknownBlockError,
    WeightsError,
)
from shoal.pipeline import CompressConfig, RunInfo, compress, parse_goal
from shoal.plan import read_plan
from shoal.sources import Consent, load_model
from shoal.store import RunFolder, load, open_model, read_folder_plan, read_record
from shoal.store.folder import EXTRAS, PLAN, PROGRAM, RECORD, WEIGHTS

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(images=32, validation_images=32, latency_seconds=0.001)
NETWORKS = networks.__file__


def images(channels, side, n=16, seed=0):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def compressed(model, x, folder, spec=None, **goal):
    result = compress(
        model, [x], parse_goal(goal or {"remove": 2}), config=CompressConfig.of(QUICK, run_info=RunInfo(model=spec))
    )
    result.save(folder)
    return result


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The embedded network, two blocks shorter."""
    folder = tmp_path_factory.mktemp("digits") / "out"
    return compressed(load_model("digits-resnet").model, images(1, 8), folder, "digits-resnet"), folder


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A user's own network from a user's own file."""
    folder = tmp_path_factory.mktemp("cifar") / "out"
    torch.manual_seed(0)
    return compressed(networks.randomised(networks.resnet20()), images(3, 32), folder, f"{NETWORKS}:resnet20"), folder


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """A network made in Python: the folder does not know where it came from."""
    folder = tmp_path_factory.mktemp("nameless") / "out"
    torch.manual_seed(0)
    return compressed(networks.randomised(networks.PreactNet()), images(1, 8), folder), folder


FRESH = """
import pickle, sys
import torch

def poisoned(*_args, **_kwargs):
    raise SystemExit("something was unpickled")

pickle.load = pickle.loads = pickle.Unpickler = torch.load = poisoned
import shoal

folder, inputs, outputs = sys.argv[1:]
model = shoal.load(folder, trust_code=True)
assert not model.training
from safetensors.torch import load_file, save_file
with torch.no_grad():
    save_file({"y": model(load_file(inputs)["x"])}, outputs)
"""


@pytest.mark.parametrize("which", [pytest.param("digits", marks=pytest.mark.slow), "cifar"])
def test_a_fresh_process_computes_bitwise_the_same_and_unpickles_nothing(which, request, tmp_path):
    result, folder = request.getfixturevalue(which)
    x = images(1, 8, seed=1) if which == "digits" else images(3, 32, seed=1)
    save_file({"x": x}, tmp_path / "x.safetensors")
    with torch.no_grad():
        expected = result.model(x)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = [str(folder), str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    command = [sys.executable, "-c", threads + FRESH, *arguments]
    ran = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], expected)


def test_the_shallow_network_comes_back_not_the_original(cifar):
    result, folder = cifar
    model = load(folder, trust_code=True)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in result.model.named_parameters()]
    assert len(model.state_dict()) < len(networks.resnet20().state_dict())


@pytest.mark.parametrize("which", ["digits", "cifar", "nameless"])
def test_no_pickle_in_the_folder(which, request):
    _, folder = request.getfixturevalue(which)
    expected = {WEIGHTS, EXTRAS, PLAN, RECORD, PROGRAM, "report.html", "README.md"}
    assert {path.name for path in folder.iterdir()} == expected
    for path in folder.iterdir():
        assert zipfile.is_zipfile(path) == (path.name == PROGRAM)
        assert not path.read_bytes().startswith(b"\x80"), f"{path.name} starts like a pickle"
    with zipfile.ZipFile(folder / PROGRAM) as program:
        for member in program.infolist():
            content = program.read(member)
            assert not member.filename.endswith((".pkl", ".pickle")), member.filename
            assert not zipfile.is_zipfile(program.open(member)), f"{member.filename} is a torch.save archive"
            if "sample_inputs" in member.filename:
                assert content == b"", member.filename


def test_a_module_or_a_factory_stands_in(nameless):
    result, folder = nameless
    x = images(1, 8, seed=1)
    expected = result.model(x)
    given = networks.PreactNet().train()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    assert torch.equal(load(folder, model=given)(x), expected)
    assert torch.equal(load(folder, model=networks.PreactNet)(x), expected)
    assert torch.equal(shoal.load(str(folder), model=networks.PreactNet)(x), expected)
    assert given.training
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())


def test_a_given_network_is_not_moved(nameless):
    class Moved(networks.PreactNet):
        moves = 0

        def to(self, *args, **kwargs):
            if self is given:
                Moved.moves += 1
            return super().to(*args, **kwargs)

    given = Moved()
    load(nameless[1], model=given)
    assert Moved.moves == 0


def test_a_folder_that_does_not_know_its_network(nameless):
    with pytest.raises(SpecError, match=r"does not know the factory of its network\n.*load\(folder, model=\.\.\.\)"):
        load(nameless[1])


def test_a_factory_that_has_moved(cifar, tmp_path):
    _, folder = cifar
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    plan = read_plan(moved / PLAN)
    for spec in ("/gone/networks.py:resnet20", f"{NETWORKS}:resnet21", "timm:no_such_network"):
        (moved / PLAN).write_text(plan.model_copy(update={"model": spec}).model_dump_json())
        with pytest.raises(SpecError, match=r"cannot be made again from '.*\n.*load\(folder, model=\.\.\.\)") as caught:
            load(moved, trust_code=True)
        assert spec in str(caught.value)
    assert torch.equal(
        load(moved, model=networks.resnet20)(images(3, 32)), load(folder, trust_code=True)(images(3, 32))
    )


def test_a_factory_that_fails(nameless):
    _, folder = nameless

    def fails():
        raise KeyError("weights")

    with pytest.raises(ModelRaisedError, match=r"factory given as model= raised KeyError: 'weights'"):
        load(folder, model=fails)
    with pytest.raises(SpecError, match=r"model= returned int, not a torch.nn.Module"):
        load(folder, model=lambda: 3)


def test_another_network_is_refused_by_what_differs(nameless, cifar):
    with pytest.raises(PlanError, match=r"made for another network: 'stem.weight' is float32\[6,1,3,3\], expected .*8"):
        load(nameless[1], model=networks.PreactNet(width=6))
    with pytest.raises(PlanError, match=r"'blocks.4.bn1.weight' is not expected"):
        load(nameless[1], model=networks.PreactNet(depth=5))
    with pytest.raises(PlanError, match=r"expected float32"):
        load(nameless[1], model=networks.PreactNet().double())
    with pytest.raises(shoal.ShoalError):
        load(cifar[1], model=networks.PreactNet)


def test_weights_of_another_network(nameless, digits, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(nameless[1], mixed)
    shutil.copy(digits[1] / WEIGHTS, mixed / WEIGHTS)
    with pytest.raises(WeightsError, match=r"does not fit the network its plan describes: .* is missing"):
        load(mixed, model=networks.PreactNet)
    (mixed / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="cannot read"):
        load(mixed, model=networks.PreactNet)


def test_a_plan_that_names_no_block(nameless, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(nameless[1], changed)
    text = (changed / PLAN).read_text().replace('"path": "blocks.', '"path": "block.')
    (changed / PLAN).write_text(text)
    with pytest.raises(UnknownBlockError, match=r"no residual block called 'block\.\d'"):
        load(changed, model=networks.PreactNet)


def test_half_precision_stays(tmp_path):
    torch.manual_seed(0)
    model = networks.randomised(networks.PreactNet()).to(torch.bfloat16)
    x = images(1, 8).to(torch.bfloat16)
    result = compressed(model, x, tmp_path / "out")
    loaded = load(tmp_path / "out", model=lambda: networks.PreactNet().to(torch.bfloat16))
    assert loaded.stem.weight.dtype == torch.bfloat16
    assert torch.equal(loaded(x), result.model(x))


def test_a_result_that_was_made_half_precision_later(nameless, tmp_path):
    result = nameless[0]
    example = images(1, 8).to(torch.bfloat16)
    half = replace(
        result,
        model=copy.deepcopy(result.model).to(torch.bfloat16),
        example=Batch((example[:2],)),
    )
    half.save(tmp_path / "half")
    loaded = load(tmp_path / "half", model=networks.PreactNet)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded(example), half.model(example))


class TiedMlp(nn.Module):
    """Two residual layers, and a head that reads the stem's weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 6, bias=False)
        self.blocks = nn.ModuleList(networks.NumberedNet.Block(6) for _ in range(3))
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.stem.weight

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    result = compressed(TiedMlp(), x, tmp_path / "out", remove=1)
    loaded = load(tmp_path / "out", model=TiedMlp)
    assert loaded.head.weight is loaded.stem.weight
    assert result.model.head.weight is result.model.stem.weight
    assert torch.equal(loaded(x), result.model(x))


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(FolderError, match="there is no folder"):
        load(tmp_path / "missing")
    with pytest.raises(FolderError, match=r"is no output folder of Shoal: it holds no plan.json"):
        load(tmp_path)
    RunFolder(tmp_path, "compress", {})
    with pytest.raises(FolderError, match=r"is unfinished\n.*Repeat the same command"):
        load(tmp_path)
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(PlanError, match="is no plan of version 2"):
        load(tmp_path)


def test_the_record_reads_back(digits, tmp_path):
    result, folder = digits
    assert read_record(folder) == result.record
    assert read_folder_plan(folder) == result.plan
    with pytest.raises(FolderError, match=r"is no output folder of Shoal: it holds no record.json"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(
        FolderError, match=r"record.json' is damaged, or of another version of Shoal: \w+: Field required"
    ):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"command": "scan"}))
    with pytest.raises(FolderError, match="is of `shoal scan`"):
        read_record(tmp_path)


def test_open_model_knows_folders_and_specs(digits, cifar):
    assert open_model(str(digits[1])).runs_code is False
    assert open_model(str(cifar[1]), consent=Consent(trust_code=True)).runs_code is True
    with pytest.raises(ConsentError, match="would run that file"):
        open_model(str(cifar[1]))
    assert open_model("digits-resnet").spec == "digits-resnet"
    with pytest.raises(SpecError, match="brings its own weights"):
        open_model(str(digits[1]), Path("w.safetensors"))
