import copy
import json

import pytest
import torch
from torch import nn

import networks
from shoal.errors import FolderError
from shoal.pipeline import CompressConfig, compress, parse_goal, result
from shoal.record import Record
from shoal.store import RunFolder, load

QUICK = CompressConfig(images=16, validation_images=16, latency_seconds=0.001)
FILES = {"model.safetensors", "extras.safetensors", "plan.json", "record.json", "report.html", "model.pt2", "README.md"}


def images(n=8, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def shortened(model, x, **goal):
    torch.manual_seed(0)
    return compress(networks.randomised(model), [x], parse_goal(goal), config=QUICK)


@pytest.fixture(scope="module")
def preact():
    torch.manual_seed(0)
    return shortened(networks.PreactNet(4, 4), images(), remove=2)


def test_save_writes_the_whole_folder(preact, tmp_path):
    record = preact.save(tmp_path / "deep" / "out")
    assert {one.name for one in (tmp_path / "deep" / "out").iterdir()} == FILES
    assert record == preact.record
    assert Record.model_validate_json((tmp_path / "deep" / "out" / "record.json").read_text()) == record
    assert "<html" in (tmp_path / "deep" / "out" / "report.html").read_text()
    loaded = load(tmp_path / "deep" / "out", model=lambda: networks.PreactNet(4, 4))
    assert torch.equal(loaded(images()), preact.model(images()))


def test_save_takes_an_empty_folder_but_no_other(preact, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"is not empty\n.*Choose a new folder"):
        preact.save(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(FolderError, match=r"cannot use '.*notes.txt'"):
        preact.save(tmp_path / "notes.txt")
    with pytest.raises(FolderError, match="embedded null"):
        preact.save("a\0b")
    (tmp_path / "empty").mkdir()
    preact.save(str(tmp_path / "empty"))
    with pytest.raises(FolderError, match="is not empty"):
        preact.save(tmp_path / "empty")


def test_a_claimed_folder_is_finished_by_the_record(preact, tmp_path):
    RunFolder(tmp_path, "compress", {"seed": 0})
    preact.save(tmp_path, claimed=True)
    # The lock file stays: removing it is a race.
    assert {one.name for one in tmp_path.iterdir()} == FILES | {"run.json", ".shoal.lock"}
    with pytest.raises(FolderError, match="holds a finished run"):
        RunFolder(tmp_path, "compress", {"seed": 0})


@pytest.mark.parametrize("failing", ["export_program", "render", "save"])
def test_a_save_that_fails_leaves_no_record(preact, tmp_path, monkeypatch, failing):
    def fails(*_args, **_kwargs):
        raise FolderError("cannot write: No space left on device")

    RunFolder(tmp_path, "compress", {})
    with monkeypatch.context() as patch:
        patch.setattr(result, failing, fails)
        with pytest.raises(FolderError, match="No space left"):
            preact.save(tmp_path, claimed=True)
    assert not (tmp_path / "record.json").exists()
    assert RunFolder(tmp_path, "compress", {}).resumed
    preact.save(tmp_path, claimed=True)
    assert json.loads((tmp_path / "record.json").read_text())["removed"] == preact.record.removed


def cifar():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    return shortened(networks.CifarResNet(2, widths=(4, 8, 16)), x, remove=4), x


def projected():
    """A block that goes down to its projection and the activation after the addition."""
    from shoal.sources.builtin_networks import DigitsResNet

    x = images()
    torch.manual_seed(0)
    return shortened(DigitsResNet(2, (4, 6)), x, blocks=["stages.1.0", "stages.0.1"]), x


def plain():
    torch.manual_seed(0)
    return shortened(networks.PreactNet(4, 4), images(), remove=2), images()


def tokens():
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    return shortened(networks.PostNormNet(), x, remove=1), x


@pytest.fixture(params=[cifar, projected, plain, tokens], ids=lambda make: make.__name__)
def shallow(request):
    """Networks whose removed blocks left an identity, padding, a projection, a norm."""
    found, x = request.param()
    return found.model, x


def test_it_is_an_ordinary_module(shallow):
    model, x = shallow
    with torch.no_grad():
        expected = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), expected)
        compiled = torch.compile(copy.deepcopy(model), backend="eager")
        assert torch.allclose(compiled(x), expected, atol=1e-6)
    for parameter in twin.parameters():
        parameter.data.add_(1.0)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_it_trains(shallow):
    model = copy.deepcopy(shallow[0])
    x = shallow[1]
    target = torch.arange(len(x)) % 3
    model.train()
    assert all(module.training for module in model.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    torch.manual_seed(0)
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < losses[0]
    model.eval()
    assert not any(module.training for module in model.modules())


def test_its_state_dict_round_trips(shallow):
    model, x = shallow
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


def test_it_works_under_autocast(shallow):
    model, x = shallow
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(x).float()).all()
