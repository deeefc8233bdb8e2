import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import language
from serving_cases import SIZES, UNITS, cut, logits, nemotron_logits
from shoal.errors import ExportError
from shoal.store.serving.modeling_decilm import mlp_width
from shoal.store.serving.nemotron_nas import write_nemotron_nas

FAMILIES = {
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "bf16": lambda: LlamaForCausalLM._from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16),
    "llama3 positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            },
        )
    ),
}  # fmt: skip


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", UNITS)
def test_an_independent_reader_computes_the_same(tmp_path, name):
    made, _ = cut(UNITS[name])
    agreement = write_nemotron_nas(tmp_path, made)
    assert agreement.max_abs_diff == 0
    ids = language.tokens(seed=5)
    assert torch.allclose(nemotron_logits(tmp_path, ids), logits(made, ids), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_relatives_of_llama(tmp_path, name):
    made, _ = cut(UNITS["all kinds"], randomised(FAMILIES[name]()))
    write_nemotron_nas(tmp_path, made)
    if name != "bf16":
        ids = language.tokens(seed=5)
        expected = logits(made, ids)
        assert torch.allclose(nemotron_logits(tmp_path, ids), expected, atol=1e-4 * float(expected.abs().max()))
    else:
        assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_every_reader_finds_the_fields_it_asks_for(tmp_path):
    made, _ = cut(UNITS["all kinds"])
    write_nemotron_nas(tmp_path, made)
    plain = json.loads((tmp_path / "config.json").read_text())
    assert plain["architectures"] == ["DeciLMForCausalLM"]
    assert plain["model_type"] == "nemotron-nas"
    assert len(plain["block_configs"]) == plain["num_hidden_layers"] == 4
    assert [block["attention"]["no_op"] for block in plain["block_configs"]] == [False, True, False, False]
    assert [block["ffn"]["no_op"] for block in plain["block_configs"]] == [False, False, True, False]
    for block in plain["block_configs"]:  # MLX refuses keys it does not know, llama.cpp's converter asks for each
        assert block["attention"].keys() == {"no_op", "replace_with_linear", "n_heads_in_group"}
        assert block["ffn"].keys() == {"no_op", "replace_with_linear", "ffn_mult"}
        assert (block["attention"]["n_heads_in_group"] is None) is block["attention"]["no_op"]


@pytest.mark.parametrize("hidden", [32, 576, 960, 2048, 4096, 5120])
@pytest.mark.parametrize("width", [256, 1536, 2560, 11008, 14336])
def test_the_multiple_names_exactly_this_width(hidden, width):
    for multiple in (1.5 * width / hidden, round(1.5 * width / hidden, 6)):  # MLX rounds it
        assert mlp_width({"ffn_mult": multiple}, hidden) == width


def test_transformers_loads_it_with_the_code_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    made, _ = cut(UNITS["all kinds"])
    write_nemotron_nas(tmp_path, made)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules.")
    ids = language.tokens(seed=6)
    assert torch.equal(logits(model, ids), logits(made, ids))
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, use_cache=False, **settings))
    code = "".join((tmp_path / name).read_text() for name in ("configuration_decilm.py", "modeling_decilm.py"))
    assert "import shoal" not in code
    assert "from shoal" not in code


def test_no_attention_in_front_is_refused(tmp_path):
    made, _ = cut(["model.layers.0#0"])
    with pytest.raises(ExportError, match=r"begins with 'model\.layers\.0\.mlp'"):
        write_nemotron_nas(tmp_path, made)
    made, _ = cut(["model.layers.0", "model.layers.1#0"])
    with pytest.raises(ExportError, match=r"begins with 'model\.layers\.1\.mlp'"):
        write_nemotron_nas(tmp_path, made)
    assert not list(tmp_path.iterdir())


def test_heads_of_another_width_are_refused(tmp_path):
    made, _ = cut(["model.layers.2#0"], language.llama(5, head_dim=16))
    with pytest.raises(ExportError, match="its heads are 16 wide"):
        write_nemotron_nas(tmp_path, made)
