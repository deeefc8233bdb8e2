import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import language
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, NonFiniteError
from shoal.plan import TokenMap
from shoal.preserve import copied
from shoal.replace import (
    build_replacement,
    build_segments,
    find_spans,
    fit_linear_attentions,
    linear_attention_specs,
)
from shoal.replace.attention_map import AttentionMap
from shoal.replace.heldout_moments import HeldOutSamples
from shoal.store.serving.nemotron_nas import write_nemotron_nas


def specs_of(model, example):
    graph = analyze(model, example)
    segments = build_segments(graph)
    return graph, linear_attention_specs(graph, segments, find_spans(graph, segments, 2))


def of_tokens(ids, mask=None):
    return Batch(kwargs={"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask})


def attention_of(model, batch):
    seen = {}

    def hook(module, args, kwargs, output):
        seen["x"], seen["y"] = kwargs["hidden_states"], output[0]

    handle = model.model.layers[1].self_attn.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(**batch.kwargs, use_cache=False)
    handle.remove()
    return seen["x"].double(), seen["y"].double()


def test_the_map_is_the_least_squares_optimum_and_padding_does_not_count():
    model = language.llama(layers=3)
    ids = torch.randint(1, 96, (40, 16), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    batch = of_tokens(ids, mask)
    graph, specs = specs_of(model, batch.take(2))
    assert [spec.token_map.module for spec in specs] == [f"model.layers.{index}.self_attn" for index in range(3)]
    [fitted] = fit_linear_attentions(graph, [batch], specs[1:2])
    x, y = attention_of(model, batch)
    kept = torch.ones(40, dtype=torch.bool)
    kept[HeldOutSamples().split(40)[0]] = False
    rows, targets = x[kept][mask[kept].bool()], y[kept][mask[kept].bool()]
    best = torch.linalg.lstsq(rows, targets).solution.T
    unit = fitted.module.self_attn.requires_grad_(False)

    def error(matrix):
        return float((rows @ matrix.T - targets).square().sum())

    assert error(best) <= error(unit.linear_attn.weight.double()) <= 1.05 * error(best)
    assert 1.05 * error(best) < error(torch.zeros_like(best))
    assert "layer_idx" not in vars(unit)
    assert unit.linear_attn.bias is None
    model.model.layers[1] = fitted.module
    with torch.no_grad():  # one token at a time gives what all at once give
        whole = model(input_ids=ids[:1], use_cache=False).logits
        first = model(input_ids=ids[:1, :9], use_cache=True)
        rest = model(input_ids=ids[:1, 9:], past_key_values=first.past_key_values).logits
    assert torch.allclose(torch.cat([first.logits, rest], 1), whole, atol=1e-5)


def test_what_is_fitted_leaves_the_network_alone_and_can_be_rebuilt_copied_and_served(tmp_path):
    model = language.llama(layers=3)
    batch = of_tokens(language.tokens(count=4))
    graph, specs = specs_of(model, batch.take(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    maps = fit_linear_attentions(graph, [batch] * 3, specs[1:])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for fitted in maps:
        again = build_replacement(fitted.stand_in, torch.zeros(1), model)
        again.load_state_dict(fitted.module.state_dict())
        assert torch.equal(again.self_attn.linear_attn.weight, fitted.module.self_attn.linear_attn.weight)
        model.set_submodule(fitted.span.paths[0], again)
    model.eval()
    with torch.no_grad():
        expected = model(**batch.kwargs, use_cache=False).logits
        assert torch.equal(copied(model)(**batch.kwargs, use_cache=False).logits, expected)
    assert write_nemotron_nas(tmp_path, model).max_abs_diff == 0


def gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return GPTNeoXForCausalLM(config).eval()


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()


def test_the_map_of_a_quantised_attention_has_numbers_of_its_own():
    attention = nn.ModuleDict({"q": nn.Linear(8, 8)})
    attention.q.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    attention.q.bias = None
    assert AttentionMap(TokenMap(module="a.b"), 8, attention).linear_attn.weight.dtype == torch.float32
    attention.register_parameter("scale", nn.Parameter(torch.ones(1, dtype=torch.bfloat16)))
    assert AttentionMap(TokenMap(module="a.b"), 8, attention).linear_attn.weight.dtype == torch.bfloat16


class Hooked(nn.Module):
    """A hook of a user's would be lost with the attention it is on."""

    def __init__(self):
        super().__init__()
        self.inner = language.llama(layers=2)
        self.inner.model.layers[1].self_attn.q_proj.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids, use_cache=False).logits


def encoder(**settings):
    layer = nn.TransformerEncoderLayer(32, 4, 48, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


IMAGE = Batch((torch.zeros(2, 3, 32, 32),))
STREAM = Batch((torch.zeros(2, 6, 32),))
TOKENS = of_tokens(language.tokens())
NETWORKS = {
    "blocks of parallel branches": (gpt_neox, TOKENS, ["gpt_neox.layers.0.attention", "gpt_neox.layers.1.attention"]),
    "a norm behind the attention": (gemma2, TOKENS, []),
    "a norm behind the sum, and a layer behind the attention": (bert, TOKENS, []),
    "a user's hook inside one": (Hooked, TOKENS, ["inner.model.layers.0.self_attn"]),
    "a vision transformer": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval(),
        IMAGE,
        ["blocks.0.attn", "blocks.1.attn"],
    ),
    "windows": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(2,)).eval(),
        IMAGE,
        ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"],
    ),
    "torch's own encoder": (
        lambda: encoder(norm_first=True, batch_first=True),
        STREAM,
        ["layers.0.self_attn", "layers.1.self_attn"],
    ),
    "the same with tokens first": (
        lambda: encoder(norm_first=True),
        STREAM,
        ["layers.0.self_attn", "layers.1.self_attn"],
    ),
    "the same with norms behind": (lambda: encoder(batch_first=True), STREAM, ["layers.1.self_attn"]),
    "no attention at all": (lambda: MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=16).eval(), IMAGE, []),
    "convolutions": (lambda: timm.create_model("resnet18").eval(), IMAGE, []),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_which_attentions_a_map_can_stand_in_for(name):
    make, example, expected = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    _, specs = specs_of(model, example)
    assert [spec.token_map.module for spec in specs] == expected
    for spec in specs:  # of zeros, it is the network without the attention
        block = spec.block_with(spec.attention_map())
        inside = spec.token_map.module.removeprefix(f"{spec.span.paths[0]}.")
        assert type(block) is type(model.get_submodule(spec.span.paths[0]))
        assert not block.get_submodule(inside).linear_attn.weight.any()


def test_what_cannot_be_fitted_is_refused():
    model = language.llama(layers=2)
    graph, specs = specs_of(model, TOKENS)
    with pytest.raises(DataError, match="no data to fit linear maps to"):
        fit_linear_attentions(graph, [], specs)
    with pytest.raises(DataError, match="one sample cannot be split"):
        fit_linear_attentions(graph, [TOKENS.take(1)], specs)
    model.model.layers[0].input_layernorm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in the activations at 'model\.layers\.0\.self_attn'"):
        fit_linear_attentions(graph, [TOKENS], specs)
    assert fit_linear_attentions(graph, [TOKENS], []) == []
