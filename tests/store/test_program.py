import importlib.util
import logging
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import language
import networks
from shoal.batches import Batch
from shoal.errors import ExportError, FolderError
from shoal.pipeline import CompressConfig, RemoveBlocks, compress
from shoal.store import export_onnx, export_program, load, program, read_record

pytestmark = pytest.mark.heavy

QUICK = CompressConfig(images=32, validation_images=32, latency_seconds=0.001)
missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def images(n=4, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return networks.randomised(networks.PreactNet(4, 3)).train()


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_as_before(model, state, training):
    assert model.training is training
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


ALONE = """
import sys
import torch
from safetensors.torch import load_file, save_file

folder = sys.argv[1]
network = torch.export.load(folder + "/model.pt2").module()
made = {name: network(x) for name, x in load_file(folder + "/x.safetensors").items()}
save_file(made, folder + "/y.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] in ("shoal", "networks")]
"""


@pytest.mark.slow
def test_a_program_loads_without_shoal_for_any_batch_size(tmp_path, network):
    made = export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    assert made.dynamic_batch
    inputs = {"one": images(1, 1), "three": images(3, 2), "many": images(33, 3)}
    save_file(inputs, tmp_path / "x.safetensors")
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    network.eval()
    for name, found in load_file(tmp_path / "y.safetensors").items():
        assert torch.allclose(found, network(inputs[name]), atol=1e-5), name


def test_a_shallow_network_is_exported_too(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    result = compress(networks.randomised(networks.CifarResNet(2)), [x], RemoveBlocks(2), config=QUICK)
    made = export_program(result.model, Batch((x,)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(program(x[:3]), result.model(x[:3]), atol=1e-5)
    assert made.dynamic_batch


def test_what_is_reported(tmp_path, network):
    made = export_program(network, Batch((images(5),)), tmp_path / "model.pt2")
    assert made.path == tmp_path / "model.pt2"
    assert 0 <= made.max_abs_diff < 1e-4
    assert (made.top1_agreement, made.n) == (1.0, 6)


@needs_onnx
def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    class Hermite(nn.Module):
        def forward(self, x):
            return torch.special.hermite_polynomial_h(x, 2)

    with pytest.raises(ExportError, match=r"cannot hold this network: No ONNX function found .*hermite") as caught:
        export_onnx(Hermite(), Batch((images(),)), tmp_path / "m.onnx")
    assert "\x1b" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


class Alike(torch.nn.Module):
    """Scores that are the same at every position: (samples, positions, classes), or with the classes second."""

    def __init__(self, form):
        super().__init__()
        self.form, self.linear = form, torch.nn.Linear(3, 5)

    def forward(self, x):
        scores = self.linear(x)
        if self.form == "tokens":
            return scores[:, None].expand(-1, 7, -1)
        return scores[:, :, None, None].expand(-1, -1, 4, 4)


@pytest.mark.parametrize("form", ["tokens", "maps"])
@pytest.mark.parametrize("by", [1e-6, 0.0])
def test_answers_agree_position_by_position(form, by, tmp_path):
    torch.manual_seed(0)
    model, x = Alike(form).eval(), torch.randn(4, 3)

    def rounded(part):
        scores = model(*part.args).clone()
        return scores + by * torch.rand_like(scores)

    made = program._compared(model, Batch((x,)), tmp_path / "m", False, rounded)
    assert (made.top1_agreement, made.n) == (1.0, 4)


def test_one_position_of_many_that_differs_is_its_share(tmp_path):
    torch.manual_seed(0)
    model, x = Alike("tokens").eval(), torch.randn(4, 3)

    def changed(part):
        scores = model(*part.args).clone()
        best, next_best = scores[0, 0].topk(2).indices.tolist()
        scores[0, 0, [best, next_best]] = scores[0, 0, [next_best, best]]
        return scores

    model.linear.weight.data *= 1e-4  # answers that differ although all numbers are close
    model.linear.bias.data *= 1e-4
    made = program._compared(model, Batch((x,)), tmp_path / "m", False, changed)
    assert made.top1_agreement == pytest.approx(1 - 1 / 28)


def shifted(program, by):
    bias = program.state_dict["head.bias"].detach().clone()
    bias[0] += by
    program.state_dict["head.bias"] = nn.Parameter(bias)


def test_the_deviation_is_that_of_the_file(tmp_path, network, monkeypatch):
    written = program._save_program

    def save_program(program, path):
        shifted(program, 1e-4)
        written(program, path)

    monkeypatch.setattr(program, "_save_program", save_program)
    made = export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    assert made.max_abs_diff == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("wrong", [1.0, float("nan"), float("inf")])
def test_a_file_that_computes_something_else_does_not_appear(tmp_path, network, monkeypatch, wrong):
    written = program._save_program

    def save_program(program, path):
        shifted(program, wrong)
        written(program, path)

    monkeypatch.setattr(program, "_save_program", save_program)
    with pytest.raises(ExportError, match=r"model.pt2' computes something else: its outputs are up to"):
        export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_network_is_left_as_it_was(tmp_path, network):
    before = state_of(network)
    export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    is_as_before(network, before, training=True)


def test_no_pickle_in_a_program(tmp_path, network):
    export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as program:
        names = program.namelist()
        assert not [name for name in names if name.endswith(".pkl")]
        samples = [name for name in names if "sample_inputs" in name]
        assert all(program.read(name) == b"" for name in samples)


def test_inputs_by_keyword(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, *, left, right):
            return {"logits": self.a(left) - self.b(right)}

    batch = Batch(kwargs={"left": torch.randn(4, 3), "right": torch.randn(4, 4)})
    model = Named()
    assert export_program(model, batch, tmp_path / "model.pt2").dynamic_batch
    program = torch.export.load(tmp_path / "model.pt2").module()
    found = program(left=batch.kwargs["left"][:3], right=batch.kwargs["right"][:3])["logits"]
    assert torch.allclose(found, model(**batch.take(3).kwargs)["logits"])


class FixedBatch(nn.Module):
    """The batch size is written into the network."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        if x.shape[0] != 4:
            raise RuntimeError("four at a time, please")
        return self.fc(x)


def test_a_batch_size_that_is_fixed_stays_fixed(tmp_path):
    made = export_program(FixedBatch(), Batch((torch.randn(4, 4),)), tmp_path / "model.pt2")
    assert (made.dynamic_batch, made.n) == (False, 4)


class DecidesByValue(networks.PreactNet):
    """The way through depends on the numbers: torch.export cannot follow."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = nn.functional.relu(x).mean(dim=(2, 3))
        return self.head(x) if float(x.abs().sum().detach()) >= 0 else self.head(-x)


@needs_onnx
@pytest.mark.parametrize("write", [export_program, export_onnx])
def test_a_network_that_cannot_be_exported(tmp_path, write):
    model = DecidesByValue(4, 3)
    before = state_of(model)
    with pytest.raises(ExportError, match=r"torch.export cannot export this network: \S+.*\n.*are whole\.$") as caught:
        write(model, Batch((images(),)), tmp_path / "model")
    assert caught.value.__cause__ is not None
    first = str(caught.value.__cause__).strip().splitlines()[0]
    assert caught.value.message.endswith(first)
    assert len(str(caught.value).splitlines()) == 2
    assert list(tmp_path.iterdir()) == []
    is_as_before(model, before, training=True)


def test_a_run_whose_network_cannot_be_exported_keeps_the_rest(tmp_path):
    torch.manual_seed(0)
    model = networks.randomised(DecidesByValue(4, 3))
    result = compress(model, [images(8)], RemoveBlocks(1), config=QUICK)
    record = result.save(tmp_path / "out")
    assert record == read_record(tmp_path / "out")
    said = [one for one in record.warnings if one.startswith("no model.pt2 was written: torch.export cannot export")]
    assert len(said) == 1
    assert record.warnings[: len(result.record.warnings)] == result.record.warnings
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "README.md",
        "extras.safetensors",
        "model.safetensors",
        "plan.json",
        "record.json",
        "report.html",
    }
    assert torch.equal(load(tmp_path / "out", model=model)(images()), result.model(images()))


@pytest.mark.parametrize("stage", ["_save_program", "_compared"])
def test_what_torch_raises_late_is_an_export_error_too(tmp_path, network, monkeypatch, stage):
    def fails(*_args):
        raise NotImplementedError("no such node\nand forty lines more")

    monkeypatch.setattr(program, stage, fails)
    with pytest.raises(ExportError, match=r"torch.export cannot hold this network: no such node\n"):
        export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path, network):
    with pytest.raises(FolderError, match=r"cannot write '.*model.pt2'"):
        export_program(network, Batch((images(),)), tmp_path / "missing" / "model.pt2")


def test_torchs_chatter_is_kept_away_and_logging_comes_back(tmp_path, network, capfd):
    level, filters = logging.root.manager.disable, list(warnings.filters)
    export_program(network, Batch((images(),)), tmp_path / "model.pt2")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.root.manager.disable == level
    assert warnings.filters == filters


@needs_onnx
def test_onnx_computes_the_same_for_any_batch_size(tmp_path, network):
    import onnxruntime

    before = state_of(network)
    made = export_onnx(network, Batch((images(),)), tmp_path / "model.onnx")
    is_as_before(network, before, training=True)
    assert made.dynamic_batch
    assert made.max_abs_diff < 1e-4
    assert (made.top1_agreement, made.n) == (1.0, 5)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    network.eval()
    for n in (1, 3, 17):
        found = session.run(None, {session.get_inputs()[0].name: images(n, n).numpy()})[0]
        assert torch.allclose(torch.from_numpy(found), network(images(n, n)), atol=1e-5)


@needs_onnx
def test_what_onnx_cannot_run_does_not_appear(tmp_path, network):
    network.to(torch.bfloat16)
    with pytest.raises(ExportError, match="ONNX cannot hold this network: "):
        export_onnx(network, Batch((images().to(torch.bfloat16),)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime", "onnxscript"])
def test_onnx_that_is_not_installed(tmp_path, network, monkeypatch, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ExportError, match=r"ONNX needs .*onnx.*\n.*pip install 'shoal\[onnx\]'"):
        export_onnx(network, Batch((images(),)), tmp_path / "model.onnx")


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from torch import nn
from shoal.batches import Batch
from shoal.errors import FolderError
from shoal.store import export_onnx, export_program, save_weights
from shoal.store.checkpoint import save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
network, batch = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4)), Batch((torch.randn(2, 64),))
state = dict(network.state_dict())
writers = {
    "model.pt2": lambda path: export_program(network, batch, path),
    "model.safetensors": lambda path: save_weights(network, path),
    "checkpoint.safetensors": lambda path: save_checkpoint(path, state, {"epoch": 1}),
}
if sys.argv[2] == "onnx":
    writers["model.onnx"] = lambda path: export_onnx(network, batch, path)
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name, write in writers.items():
    try:
        write(folder / name)
    except FolderError as error:
        assert f"cannot write '{folder / name}'" in error.message and "Free some space" in error.hint, error
    else:
        raise AssertionError(name)
assert not list(folder.iterdir())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
def test_a_full_disk_is_an_error_not_the_end_of_the_process(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path), "" if missing else "onnx"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_a_decoder_is_exported_without_its_cache(tmp_path):
    pytest.importorskip("transformers")
    model = language.llama(layers=2)
    assert model.config.use_cache
    made = export_program(model, Batch(kwargs={"input_ids": language.tokens()}), tmp_path / "model.pt2")
    assert made.max_abs_diff < 1e-4
    assert model.config.use_cache
    ids = language.tokens(count=3 if made.dynamic_batch else 2, seed=5)
    answer = torch.export.load(tmp_path / "model.pt2").module()(input_ids=ids)
    with torch.no_grad():
        torch.testing.assert_close(answer.logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_the_version_of_the_operators_and_a_fixed_batch(tmp_path, network):
    import onnx

    export_onnx(network, Batch((images(),)), tmp_path / "a.onnx", opset=20, dynamic=False)
    document = onnx.load(tmp_path / "a.onnx")
    assert [entry.version for entry in document.opset_import if entry.domain == ""] == [20]
    assert document.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@needs_onnx
def test_a_version_that_torch_does_not_write_is_refused_and_nothing_is_left(tmp_path, network):
    with pytest.raises(ExportError, match="cannot be written in version 99: torch made version"):
        export_onnx(network, Batch((images(),)), tmp_path / "a.onnx", opset=99, dynamic=False)
    assert list(tmp_path.iterdir()) == []
