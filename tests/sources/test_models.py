import copy
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shoal.errors import SpecError, UsageError, WeightsError
from shoal.sources.models import load_model


def test_the_embedded_network():
    loaded = load_model("digits-resnet")
    assert (loaded.spec, loaded.runs_code, loaded.num_classes) == ("digits-resnet", False, 10)
    assert not loaded.model.training
    assert loaded.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_users_function(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Linear(4, 3))\ndef cls(): return nn.ReLU"
    )
    loaded = load_model(f"{file}:build")
    assert loaded.runs_code
    assert loaded.num_classes == 3
    assert not loaded.model.training
    copy.deepcopy(loaded.model)
    with pytest.raises(SpecError, match=r"returned ReLU, not a torch.nn.Module\n.*an instance"):
        load_model(f"{file}:cls")


def test_weights_are_loaded_into_it(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)")
    torch.save({"weight": torch.eye(2), "bias": torch.ones(2)}, tmp_path / "w.pt")
    model = load_model(f"{file}:build", tmp_path / "w.pt").model
    assert torch.equal(model.weight, torch.eye(2))
    with pytest.raises(WeightsError, match="does not exist"):
        load_model(f"{file}:build", tmp_path / "no.pt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit-resnet", "unknown MODEL 'digit-resnet'\n.*Did you mean 'digits-resnet'"),
        ("timmm:resnet18", "Did you mean 'timm:'"),
        ("", "unknown MODEL ''"),
        ("torchvision:", "unknown MODEL"),
    ],
)
def test_unknown(spec, message):
    with pytest.raises(SpecError, match=message):
        load_model(spec)


def test_a_folder(tmp_path):
    with pytest.raises(SpecError, match="is a folder"):
        load_model(str(tmp_path))


def test_two_kinds_of_weights(tmp_path):
    with pytest.raises(UsageError, match="brings its own weights"):
        load_model("timm:resnet18@pretrained", tmp_path / "w.pt")


@pytest.mark.parametrize(("spec", "extra"), [("torchvision:resnet18", "vision"), ("hf:x", "text")])
def test_a_missing_library(spec, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision" if extra == "vision" else "transformers", None)
    with pytest.raises(SpecError, match=rf"pip install 'shoal\[{extra}\]'"):
        load_model(spec)


def test_torchvision():
    pytest.importorskip("torchvision")
    loaded = load_model("torchvision:resnet18")
    assert loaded.num_classes == 1000
    with pytest.raises(SpecError, match="Did you mean 'resnet18'"):
        load_model("torchvision:resnet_18")


def test_timm():
    pytest.importorskip("timm")
    loaded = load_model("timm:resnet18")
    assert isinstance(loaded.model, nn.Module)
    assert loaded.num_classes == 1000
    with pytest.raises(SpecError, match="timm has no network 'resnet18x'"):
        load_model("timm:resnet18x")


@pytest.fixture
def vit(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    config.num_labels = 5
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    return network


def test_hugging_face(vit, tmp_path):
    loaded = load_model(f"hf:{tmp_path}")
    assert type(loaded.model) is type(vit)
    assert loaded.num_classes == 5
    x = torch.rand(1, 3, 8, 8)
    torch.save(vit.state_dict(), tmp_path / "own.pt")
    with torch.no_grad():
        assert torch.equal(loaded.model(x).logits, vit(x).logits)
        again = load_model(f"hf:{tmp_path}", tmp_path / "own.pt").model
        assert torch.equal(again(x).logits, vit(x).logits)


def test_hugging_face_never_fills_gaps_with_random_numbers(vit, tmp_path):
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"no weights for 1 tensors, such as classifier\.weight"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("asked", ["NoSuchModel", "pipeline"])
def test_hugging_face_class_that_is_no_network(vit, tmp_path, asked):
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [asked]}))
    with pytest.raises(SpecError, match=f"asks for .*{asked}"):
        load_model(f"hf:{tmp_path}")


def test_hugging_face_that_is_not_there(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match="transformers could not load"):
        load_model(f"hf:{tmp_path}")


def test_hugging_face_knows_its_folder(vit, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "own.pt")
    for weights in (None, tmp_path / "own.pt"):
        assert load_model(f"hf:{tmp_path}", weights).model.name_or_path == str(tmp_path)


def test_an_adapter_is_no_network(vit, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SpecError, match=r"holds an adapter \(PEFT, LoRA\).*\n.*merge_and_unload"):
        load_model(f"hf:{tmp_path}")


def test_code_of_a_repository_is_never_run(tmp_path):
    own = {"AutoConfig": "conf.MineConfig", "AutoModel": "net.Mine"}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "architectures": ["Mine"], "auto_map": own})
    )
    for name in ("conf.py", "net.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(SpecError, match=r"brings its own code, which Shoal does not run\n  .*FILE\.py:FUNCTION"):
        load_model(f"hf:{tmp_path}")
    assert not (tmp_path / "ran").exists()
