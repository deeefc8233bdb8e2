"""Networks cut by units, for the formats of servers, and a reader of one of them that shares no code with Shoal."""

import json

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

import language
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.plan import Plan, Remove
from shoal.surgery import input_specs, remove_blocks, signature_of

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
UNITS = {
    "whole layers": ["model.layers.2"],
    "halves that meet": ["model.layers.1#1", "model.layers.2#0"],
    "no attention": ["model.layers.1#0", "model.layers.3#0"],
    "no MLP": ["model.layers.0#1", "model.layers.3#1"],
    "all kinds": ["model.layers.1#0", "model.layers.2#1", "model.layers.3"],
}


def cut(removed, model=None):
    """A network without these blocks and units, and the plan that says so."""
    model = language.llama(layers=5) if model is None else model
    batch = Batch(kwargs={"input_ids": language.tokens()})
    plan = Plan(
        inputs=input_specs(batch),
        network=signature_of(model, analyze(model, batch).chain),
        actions=[Remove.named(name) for name in removed],
    )
    return remove_blocks(model, batch, removed).eval(), plan


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def nemotron_logits(folder, ids):
    """What a Nemotron-NAS folder computes: one layer of transformers for each entry, its missing half left out."""
    plain = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    names = ("vocab_size", "hidden_size", "num_attention_heads", "rms_norm_eps", "rope_theta", "rope_scaling")
    names += ("attention_bias", "mlp_bias", "max_position_embeddings")
    stream = tensors["model.embed_tokens.weight"][ids]
    count = ids.shape[1]
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    for index, block in enumerate(plain["block_configs"]):
        width = int(2 * (block["ffn"]["ffn_mult"] or 0) * plain["hidden_size"] / 3)
        config = LlamaConfig(
            **{name: plain[name] for name in names},
            intermediate_size=(width + 255) // 256 * 256,
            num_key_value_heads=plain["num_attention_heads"] // (block["attention"]["n_heads_in_group"] or 1),
            attn_implementation="eager",
        )
        layer = LlamaDecoderLayer(config, index)
        start = f"model.layers.{index}."
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        absent = layer.load_state_dict(own, strict=False)
        assert not absent.unexpected_keys
        expected = {"self_attn", "input_layernorm"} if block["attention"]["no_op"] else set()
        expected |= {"mlp", "post_attention_layernorm"} if block["ffn"]["no_op"] else set()
        assert {name.split(".")[0] for name in absent.missing_keys} == expected
        places = LlamaRotaryEmbedding(config)(stream, torch.arange(count)[None])
        if not block["attention"]["no_op"]:
            normed = layer.input_layernorm(stream)
            stream = stream + layer.self_attn(normed, position_embeddings=places, attention_mask=mask)[0]
        if not block["ffn"]["no_op"]:
            stream = stream + layer.mlp(layer.post_attention_layernorm(stream))
    norm = LlamaRMSNorm(plain["hidden_size"], plain["rms_norm_eps"])
    norm.weight.data = tensors["model.norm.weight"]
    head = tensors["model.embed_tokens.weight" if plain["tie_word_embeddings"] else "lm_head.weight"]
    return norm(stream) @ head.T
