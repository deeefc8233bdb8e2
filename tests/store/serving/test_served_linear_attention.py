"""Attentions of which one linear map of the normalised stream is left, in the formats that have a field for them."""

import json

import pytest
import torch
from torch import nn

import language
from serving_cases import cut, logits
from shoal.errors import ExportError
from shoal.store.serving.decoder import build, read_decoder
from shoal.store.serving.gguf_file import GgufContent, check_gguf, decoder_for_gguf, write_gguf
from shoal.store.serving.modeling_decilm import DeciLMForCausalLM
from shoal.store.serving.nemotron_nas import write_nemotron_nas
from shoal.store.serving.plain_llama import as_plain_llama


class Map(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear_attn = nn.Linear(size, size, bias=False)

    def forward(self, hidden_states, **kwargs):
        return self.linear_attn(hidden_states), None


def with_maps(numbers, removed=("model.layers.3",), size=32):
    made, _ = cut(list(removed))
    torch.manual_seed(1)
    for number in numbers:
        made.model.layers[number].self_attn = Map(size)
    return made.eval()


CASES = {"alone": ([2], ["model.layers.3"]), "no MLP behind it": ([1], ["model.layers.1#1"]), "two": ([1, 4], [])}


@pytest.mark.parametrize("name", CASES)
def test_nemotron_nas_holds_the_map(tmp_path, name):
    made = with_maps(*CASES[name])
    assert write_nemotron_nas(tmp_path, made).max_abs_diff == 0
    blocks = json.loads((tmp_path / "config.json").read_text())["block_configs"]
    linear = [index for index, block in enumerate(blocks) if block["attention"]["replace_with_linear"]]
    assert len(linear) == len(CASES[name][0])
    for index in linear:
        assert blocks[index]["attention"] == {"no_op": False, "replace_with_linear": True, "n_heads_in_group": None}
    loaded = DeciLMForCausalLM.from_pretrained(tmp_path).eval()
    ids = language.tokens(seed=5)
    assert torch.allclose(logits(loaded, ids), logits(made, ids), atol=1e-5)
    start, most = ids[:1, :4], {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert loaded.generate(start, **most).tolist() == loaded.generate(start, **most, use_cache=False).tolist()


@pytest.mark.parametrize("name", CASES)
def test_gguf_holds_the_map_as_the_output_map_of_heads_without_keys(tmp_path, name):
    gguf = pytest.importorskip("gguf", reason="shoal[gguf] is not installed")
    made, path = with_maps(*CASES[name]), tmp_path / "tiny.gguf"
    write_gguf(path, GgufContent(decoder_for_gguf(made), torch.float32, "tiny"))
    assert check_gguf(path, made, torch.float32).max_abs_diff < 1e-5
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "deci"
    heads, keys = (reader.get_field(f"deci.attention.{name}").contents() for name in ("head_count", "head_count_kv"))
    linear = [index for index, pair in enumerate(zip(heads, keys, strict=True)) if pair[0] and not pair[1]]
    assert len(linear) == len(CASES[name][0])
    names = {tensor.name for tensor in reader.tensors}
    for index in linear:
        assert {f"blk.{index}.attn_norm.weight", f"blk.{index}.attn_output.weight"} <= names
        assert f"blk.{index}.attn_q.weight" not in names


def test_llama_cpp_computes_the_same(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="shoal[gguf] is not installed")
    made, path = with_maps([2]), tmp_path / "tiny.gguf"
    write_gguf(path, GgufContent(decoder_for_gguf(made), torch.float32, "tiny"))
    ids = language.tokens(seed=5)[0].tolist()
    served = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    served.eval(ids)
    actual = torch.tensor(served.scores[: len(ids)])
    expected = logits(made, torch.tensor([ids]))[0]
    assert torch.allclose(actual, expected, atol=1e-2 * float(expected.abs().max()))


def test_the_other_half_meets_it():
    decoder = read_decoder(with_maps([2], ["model.layers.1#1", "model.layers.2#1"]))
    assert [layer.linear_attention for layer in decoder.layers] == [False, False, True, False, False]
    ids = language.tokens(seed=5)
    made = with_maps([2], ["model.layers.1#1", "model.layers.2#1"])
    assert torch.allclose(logits(build(read_decoder(made)), ids), logits(made, ids), atol=1e-5)


def test_what_cannot_hold_it_refuses():
    made = with_maps([2])
    with pytest.raises(ExportError, match=r"model\.layers\.2\.self_attn.* has a linear map in the place of its attent"):
        as_plain_llama(made, read_decoder(made))
    for prepare in (decoder_for_gguf, lambda model: write_nemotron_nas(None, model)):
        with pytest.raises(ExportError, match=r"begins with 'model\.layers\.0\.self_attn', a linear map"):
            prepare(with_maps([0]))
    biased = with_maps([2])
    biased.model.layers[2].self_attn.linear_attn.bias = nn.Parameter(torch.ones(32))
    with pytest.raises(ExportError, match=r"differs in self_attn\.linear_attn\.bias"):
        read_decoder(biased)
