import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import language
from serving_cases import SIZES, UNITS, cut, logits
from shoal.errors import ExportError
from shoal.store.serving.decoder import build, compare, read_decoder, with_all_biases, with_width

PACKED = {
    "whole layers": [(2, 48)] * 4,
    "halves that meet": [(2, 48)] * 4,
    "no attention": [(2, 48), (0, 48), (2, 48), (0, 48), (2, 48)],
    "no MLP": [(2, 0), (2, 48), (2, 48), (2, 0), (2, 48)],
    "all kinds": [(2, 48), (0, 48), (2, 0), (2, 48)],
}


@pytest.mark.parametrize("name", UNITS)
def test_what_is_left_is_packed_into_as_few_layers_as_hold_it(name):
    made, _ = cut(UNITS[name])
    decoder = read_decoder(made)
    assert [(layer.kv_heads, layer.width) for layer in decoder.layers] == PACKED[name]
    ids = language.tokens(seed=2)
    assert torch.equal(logits(build(decoder), ids), logits(made, ids))


def test_a_layer_remembers_what_it_was_made_of():
    made, _ = cut(UNITS["halves that meet"])
    assert read_decoder(made).layers[1].parts == ("model.layers.1.self_attn", "model.layers.2.mlp")


def test_wider_mlps_and_zero_biases_change_nothing():
    made, _ = cut(["model.layers.1#1", "model.layers.3#0"], language.llama(5, attention_bias=True, mlp_bias=True))
    decoder = read_decoder(made)
    ids = language.tokens(seed=2)
    wider = decoder
    for index, layer in enumerate(decoder.layers):
        wider = with_width(wider, index, layer.width + 16)
    assert torch.allclose(logits(build(with_all_biases(wider, "mlp")), ids), logits(made, ids), atol=1e-6)


def sliding():
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))


REFUSED = {
    "another family": (lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4)), "GPT2LMHeadModel is not"),
    "norms of queries": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), "Qwen3ForCausalLM is not built"),
    "a window": (sliding, "sees a window of 8 tokens"),
    "positions": (
        lambda: LlamaForCausalLM(
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
        ),
        "rotated by 'dynamic'",
    ),
    "an activation": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), "is 'gelu'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_built_like_llama_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ExportError, match=message):
        read_decoder(make().eval())


class StandIn(nn.Linear):
    def forward(self, x, *args, **kwargs):
        return super().forward(x)


def test_a_stand_in_and_what_was_added_are_named():
    model = language.llama(4)
    model.model.layers[2] = StandIn(32, 32)
    with pytest.raises(ExportError, match=r"'model\.layers\.2' is a StandIn, not a layer of Llama"):
        read_decoder(model)
    model = language.llama(4)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ExportError, match=r"no place for 'extra\.weight', 'extra\.bias'"):
        read_decoder(model)
    model = language.llama(4)
    model.model.layers[1].mlp.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ExportError, match=r"'model\.layers\.1' is not a layer of Llama: it differs in mlp\.scale"):
        read_decoder(model)
    model = language.llama(4)
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ExportError, match=r"mlp\.up_proj\.weight' holds int8"):
        read_decoder(model)


@pytest.mark.parametrize("change", ["hook", "scale", "eps"])
def test_what_computes_something_else_is_noticed_however_it_does(change):
    model = language.llama(4)
    if change == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 1.5)
    elif change == "scale":
        model.model.layers[2].self_attn.scaling *= 3
    else:
        model.model.norm.variance_epsilon = 1.0
    with pytest.raises(ExportError, match="loaded again it computes something else"):
        compare(model, build(read_decoder(model)))
