import copy

import pytest
import torch
from torch import nn

import halves
import language
from families import family
from shoal.batches import Batch
from shoal.surgery import remove_blocks
from shoal.surgery.hugging_face import attention_slots, repair_kv_cache_


def largest_difference(model, ids):
    """The last token with the cache of those before it, against the whole text at once."""
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -1]
        first = model(input_ids=ids[:, :-1], use_cache=True)
        last = model(input_ids=ids[:, -1:], past_key_values=first.past_key_values, use_cache=True).logits[:, -1]
    return float((whole - last).abs().max())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3", "mistral", "opt"])
@pytest.mark.parametrize("part", ["#0", ""])
def test_the_cache_says_how_long_the_text_is_without_the_first_attention(name, part):
    model, inputs, removed = family(name)
    first = removed[0].rpartition(".")[0] + ".0"
    ids = inputs["input_ids"]
    assert largest_difference(model, ids) < 1e-4
    cut = remove_blocks(model, Batch(kwargs=inputs), [first + part]).eval()
    assert largest_difference(cut, ids) < 1e-4


def test_the_first_attention_that_is_left_takes_the_slot():
    model, ids = language.llama(), language.tokens()
    names = ["model.layers.0#0", "model.layers.1"]
    cut = remove_blocks(model, Batch(kwargs={"input_ids": ids}), names)
    assert {place: sorted(slots) for place, slots in attention_slots(cut).items()} == {
        "model.layers.*.self_attn": [0, 3]
    }
    assert cut.model.layers[2].self_attn.layer_idx == 0
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert largest_difference(cut, ids) < 1e-4


def test_without_any_attention_there_is_no_cache():
    model, ids = language.llama(), language.tokens()
    cut = remove_blocks(model, Batch(kwargs={"input_ids": ids}), [f"model.layers.{n}#0" for n in range(4)])
    assert cut.config.use_cache is False
    assert model.config.use_cache is True


def test_other_networks_are_left_alone():
    model = halves.Halves()
    before = copy.deepcopy(model.state_dict())
    assert attention_slots(model) == {}
    repair_kv_cache_(model, {})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert attention_slots(nn.Linear(2, 2)) == {}
