import json

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import language
import networks
from families import family
from shoal.batches import Batch
from shoal.errors import SurgeryError
from shoal.surgery import remove_blocks
from shoal.surgery.hugging_face import EmptiedLayerList, _is_shorter, compact_hf_model, is_hugging_face


def cut_of(name, removed=None):
    model, inputs, usual = family(name)
    removed = usual if removed is None else removed
    return remove_blocks(model, Batch(kwargs=inputs), removed).eval(), inputs, removed


def test_the_places_are_gone_and_the_cut_network_stays():
    cut, inputs, removed = cut_of("llama")
    names = list(cut.state_dict())
    with torch.no_grad():
        before = cut(**inputs).logits
    short = compact_hf_model(cut, removed)
    assert type(short) is type(cut)
    assert len(short.model.layers) == 2
    assert {type(layer).__name__ for layer in short.model.layers} == {"LlamaDecoderLayer"}
    assert [layer.self_attn.layer_idx for layer in short.model.layers] == [0, 1]
    assert short.config.num_hidden_layers == 2
    with torch.no_grad():
        assert torch.equal(short(**inputs).logits, before)
        assert torch.equal(cut(**inputs).logits, before)
    assert (len(cut.model.layers), cut.config.num_hidden_layers, list(cut.state_dict())) == (4, 4, names)


def test_no_memory_is_taken_for_the_weights():
    cut, _, removed = cut_of("llama")
    short = compact_hf_model(cut, removed)
    kept = cut.model.layers[3].mlp.up_proj.weight
    assert short.model.layers[1].mlp.up_proj.weight is kept
    assert not any(tensor.is_meta for tensor in [*short.parameters(), *short.buffers()])


def test_lists_by_layer_follow():
    cut, _, removed = cut_of("gemma2")
    kinds = [kind for place, kind in enumerate(cut.config.layer_types) if place in (1, 2)]
    assert len(set(cut.config.layer_types)) == 2
    assert compact_hf_model(cut, removed).config.layer_types == kinds


def test_each_list_has_its_own_number():
    cut, _, removed = cut_of("whisper")
    config = compact_hf_model(cut, removed).config
    assert (config.encoder_layers, config.decoder_layers) == (3, 2)
    clip, _, removed = cut_of("clip")
    config = compact_hf_model(clip, removed).config
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (3, 2)


def test_a_number_that_is_the_same_by_chance_stays():
    model, inputs, removed = family("llama")
    assert model.config.num_attention_heads == model.config.num_hidden_layers == 4
    cut = remove_blocks(model, Batch(kwargs=inputs), removed)
    assert compact_hf_model(cut, removed).config.num_attention_heads == 4


def test_tied_weights_stay_tied():
    model = language.llama(tie_word_embeddings=True)
    inputs = {"input_ids": language.tokens()}
    cut = remove_blocks(model, Batch(kwargs=inputs), ["model.layers.1"])
    short = compact_hf_model(cut, ["model.layers.1"])
    assert short.lm_head.weight is short.model.embed_tokens.weight
    assert short.lm_head.weight is cut.lm_head.weight


def test_a_part_of_a_layer_is_refused():
    cut, _, removed = cut_of("t5", ["encoder.block.1.layer.1"])
    with pytest.raises(SurgeryError, match=r"part of a layer was removed \('encoder\.block\.1\.layer\.1'\)"):
        compact_hf_model(cut, removed)


def test_norms_that_stay_are_refused_by_name():
    cut, _, removed = cut_of("bert")
    with pytest.raises(SurgeryError, match=r"'bert\.encoder\.layer\.1' something is left .*output_LayerNorm"):
        compact_hf_model(cut, removed)


def test_layers_that_are_not_alike_are_refused():
    # The first layer of ModernBERT alone has no norm before its attention.
    cut, _, removed = cut_of("modernbert", ["model.layers.0"])
    with pytest.raises(SurgeryError, match="its layers are not alike"):
        compact_hf_model(cut, removed)


def test_an_adapter_is_refused():
    model = language.llama()
    model.peft_config = {}
    with pytest.raises(SurgeryError, match=r"adapter.*\n.*merge_and_unload"):
        compact_hf_model(model, ["model.layers.1"])


class Mine(LlamaForCausalLM):
    """A class that only its author has."""


def test_only_classes_of_transformers():
    assert is_hugging_face(language.llama())
    assert not is_hugging_face(networks.PreactNet())
    own = Mine(LlamaConfig(**json.loads(language.llama().config.to_json_string())))
    assert not is_hugging_face(own)
    with pytest.raises(SurgeryError, match="Mine is not a class of transformers"):
        compact_hf_model(own, ["model.layers.1"])


def test_all_layers_gone_is_refused():
    cut, _, removed = cut_of("llama", [f"model.layers.{number}" for number in range(4)])
    with pytest.raises(SurgeryError, match="no layer is left"):
        compact_hf_model(cut, removed)


def test_a_list_that_no_field_counts_is_refused(monkeypatch):
    cut, _, removed = cut_of("llama")
    built = type(cut).__init__

    def with_four(self, config, *args, **kwargs):
        built(self, config, *args, **kwargs)
        while len(self.model.layers) < 4:
            self.model.layers.append(nn.Identity())

    monkeypatch.setattr(type(cut), "__init__", with_four)
    with pytest.raises(SurgeryError, match=r"no field of LlamaConfig alone says how many layers 'model\.layers' has"):
        compact_hf_model(cut, removed)


def test_a_number_that_shortens_another_list_too_is_not_it():
    one = EmptiedLayerList("a", 4, {1})
    assert _is_shorter({"a": 4, "b": 4}, {"a": 3, "b": 4}, one)
    assert not _is_shorter({"a": 4, "b": 4}, {"a": 3, "b": 3}, one)
    assert not _is_shorter({"a": 4}, {"a": 2}, one)
    assert _is_shorter({"a": 4, "a.3.b": 2}, {"a": 3}, one)


def test_tensors_that_are_plain_attributes_come_along(monkeypatch):
    built = LlamaDecoderLayer.__init__

    def with_scale(self, config, layer_idx):
        built(self, config, layer_idx)
        self.scale = torch.ones(2)

    monkeypatch.setattr(LlamaDecoderLayer, "__init__", with_scale)
    cut, _, removed = cut_of("llama")
    cut.model.layers[3].scale = torch.tensor([3.0, 4.0])
    assert compact_hf_model(cut, removed).model.layers[1].scale.tolist() == [3.0, 4.0]


def test_the_kind_of_attention_stays():
    model = language.llama()
    model.set_attn_implementation("eager")
    cut = remove_blocks(model, Batch(kwargs={"input_ids": language.tokens()}), ["model.layers.1"])
    assert compact_hf_model(cut, ["model.layers.1"]).config._attn_implementation == "eager"


def test_what_is_left_of_a_layer_is_named():
    """Gemma 4 scales what leaves a layer by a number of the layer's own, which stays when the layer goes."""
    cut, _, removed = cut_of("llama")
    cut.get_submodule(removed[0]).register_buffer("layer_scalar", torch.ones(1))
    with pytest.raises(SurgeryError, match="something is left that its class cannot be without: layer_scalar"):
        compact_hf_model(cut, removed)
