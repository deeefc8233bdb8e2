"""The snippets of the cookbook run as they stand, on tiny networks."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import networks
import shoal
import stopwatch
from shoal.pipeline import CompressConfig, parse_goal

pytestmark = pytest.mark.heavy

PAGE = Path(__file__).parents[1] / "docs" / "cookbook-training.md"
QUICK = CompressConfig(images=36, latency_seconds=0.001, stand_ins=("linear", "conv3"), longest=2)


def snippets():
    """The blocks of Python in the page by their section."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        found[section.partition("\n")[0]] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    stopwatch.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def build():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16)))


def images(size=12, count=3):
    return [torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def prepared(**goal):
    """What the snippets start from."""
    model = build()
    result = shoal.compress(model, images(), parse_goal(goal), config=QUICK)
    return {"model": model, "result": result, "train_loader": [(x, None) for x in images()]}


def test_your_own_loop():
    scope = prepared(macs=0.5)
    before = {name: one.clone() for name, one in scope["result"].model.state_dict().items()}
    exec(snippets()["Your own loop"][0], scope)
    student = scope["student"]
    assert any(not torch.equal(before[name], one) for name, one in student.state_dict().items())
    assert not student.training
    x = images(count=1)[0]
    with torch.no_grad():
        assert torch.equal(shoal.load("trained", model=build)(x), student(x))


def test_stand_ins_made_trainable_and_plain_again():
    scope = prepared(macs=0.5)
    assert scope["result"].plan.replaced
    x = images(count=1)[0]
    with torch.no_grad():
        expected = scope["result"].model(x)
        exec(snippets()["Your own loop"][1], scope)
        torch.testing.assert_close(scope["student"](x), expected, rtol=1e-4, atol=1e-5)
    names = set(scope["student"].state_dict())
    scope["result"].save("o")
    assert names == set(shoal.load("o", model=build).state_dict())


def test_timm_makes_it_by_name(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    text = snippets()["timm's training script"][0]
    assert 'shoal.load("shoal-runs/compress-...", trust_code=True)' in text
    scope = prepared(remove=1)
    scope["result"].save("o")
    (tmp_path / "original.py").write_text("from test_cookbook import build\n")
    (tmp_path / "shallow.py").write_text(
        text.replace(
            'shoal.load("shoal-runs/compress-...", trust_code=True)',
            'shoal.load("o", model=__import__("original").build)',
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("shallow")
    made = timm.create_model("shallow", pretrained=False)
    x = images(count=1)[0]
    with torch.no_grad():
        assert torch.equal(made(x), scope["result"].model(x))
    for name in ("shallow", "original"):
        sys.modules.pop(name)


def test_hugging_faces_trainer():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30, (16, 6), generator=generator)
    tokenised = [{"input_ids": one, "attention_mask": torch.ones(6, dtype=torch.long), "labels": int(one[0]) % 3}
                 for one in ids]  # fmt: skip
    loader = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    result = shoal.compress(
        model, loader, shoal.RemoveBlocks(1), config=shoal.CompressConfig(images=16, latency_seconds=0.001)
    )
    scope = {"result": result, "tokenised": tokenised, "teacher": model}
    for text in snippets()["Hugging Face's Trainer"]:
        before = {name: one.clone() for name, one in result.model.state_dict().items()}
        exec(text, scope)
        after = result.model.to("cpu").state_dict()
        assert any(not torch.equal(before[name], one) for name, one in after.items())
        assert all(bool(torch.isfinite(one).all()) for one in after.values())
