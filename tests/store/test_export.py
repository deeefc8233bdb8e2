import json
import shutil

import pytest
import torch
import transformers

import language
import serving_cases
import shoal
from serving_cases import UNITS, cut, logits
from shoal.errors import ConsentError, ExportError, FolderError, UsageError
from shoal.store import ExportConfig
from shoal.store.save import save


@pytest.fixture
def folder(tmp_path):
    """An output folder of a Llama with a tokenizer, one attention and one MLP removed."""
    source = tmp_path / "original"
    language.llama(layers=5, vocab_size=120).save_pretrained(source)
    language.save_tokenizer(source)
    model = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    made, plan = cut(["model.layers.1#0", "model.layers.3#1"], model)
    out = tmp_path / "out"
    out.mkdir()
    save(out, made, plan.model_copy(update={"model": f"hf:{source}"}))
    return out


def test_each_format_lies_in_the_folder_and_agrees(folder):
    pytest.importorskip("gguf", reason="shoal[gguf] is not installed")
    made = {to: shoal.export(folder, to, trust_code=True) for to in ("nemotron_nas", "gguf")}
    assert {exported.path.name for exported in made.values()} == {"nemotron-nas", "model.gguf"}
    for exported in made.values():
        assert exported.path.exists()
        assert exported.max_abs_diff == 0
        assert (exported.top1_agreement, exported.unit) == (1, "tokens")
    names = {file.name for file in (folder / "nemotron-nas").iterdir()}
    assert {"tokenizer.json", "README.md", "generation_config.json"} <= names
    card = (folder / "nemotron-nas" / "README.md").read_text()
    assert "`model.layers.1#0`" in card
    assert "block_configs" in card
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_what_it_cannot_write_leaves_what_was_there(folder, monkeypatch):
    first = shoal.export(folder, "nemotron_nas", trust_code=True).path / "config.json"
    before = first.read_text()
    with pytest.raises(ExportError, match=r"plain transformers cannot hold this network.*model\.layers\.1\.mlp"):
        shoal.export(folder, "hf", trust_code=True)
    monkeypatch.setattr(
        "shoal.store.serving.nemotron_nas._config", lambda decoder, model: {"model_type": "nemotron-nas"}
    )
    with pytest.raises(ExportError):
        shoal.export(folder, "nemotron_nas", trust_code=True)
    assert first.read_text() == before
    assert not [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_card_of_what_the_network_was(folder):
    shutil.rmtree(folder / "hf", ignore_errors=True)
    (folder / "nemotron-nas").write_text("a file of the user's")
    with pytest.raises(FolderError, match="cannot write"):
        shoal.export(folder, "nemotron_nas", trust_code=True)
    assert (folder / "nemotron-nas").read_text() == "a file of the user's"


def test_wrong_use_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="there is no format 'ggml'"):
        shoal.export(tmp_path, "ggml")
    with pytest.raises(FolderError, match="no output folder of Shoal"):
        shoal.export(tmp_path, "gguf")


def test_nothing_that_a_folder_names_is_opened_without_consent(folder, tmp_path):
    path = folder / "plan.json"
    plain = json.loads(path.read_text())
    (tmp_path / "code.py").write_text("def make():\n    raise SystemExit('was run')\n")
    path.write_text(json.dumps({**plain, "model": f"{tmp_path / 'code.py'}:make"}))
    with pytest.raises(ConsentError):
        shoal.export(folder, "gguf")


def test_a_network_made_in_python_is_exported_with_its_factory(tmp_path):
    pytest.importorskip("gguf", reason="shoal[gguf] is not installed")
    made, plan = cut(UNITS["all kinds"])
    save(tmp_path, made, plan)
    config = ExportConfig(with_tokenizer=False)
    assert shoal.export(tmp_path, "gguf", config=config, model=lambda: language.llama(5)).max_abs_diff == 0
    with pytest.raises(ExportError, match="not known where the tokenizer"):
        shoal.export(tmp_path, "gguf", model=lambda: language.llama(5))
    ids = language.tokens(seed=4)
    nas = shoal.export(tmp_path, "nemotron_nas", model=lambda: language.llama(5)).path
    assert torch.allclose(serving_cases.nemotron_logits(nas, ids), logits(made, ids), atol=1e-5)
