"""A decoder whose layers are all whole and alike, as a shorter network of its own class."""

import copy
from typing import Any

import torch
from torch import nn

from shoal.errors import ExportError
from shoal.store.serving.decoder import Decoder, incomplete


def as_plain_llama(model: nn.Module, decoder: Decoder) -> nn.Module:
    """A network of the class of `model` with the layers of `decoder`; it shares their tensors.

    Raises:
        ExportError: a layer lacks its attention or its MLP, or they are not alike; names them.
    """
    if not decoder.is_plain:
        raise ExportError(incomplete(decoder) or "its MLPs are not equally wide, or its keys not of as many heads")
    original: Any = model
    config = copy.deepcopy(original.config)
    config.num_hidden_layers = len(decoder.layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"] * len(decoder.layers)
    config.num_key_value_heads, config.intermediate_size = decoder.layers[0].kv_heads, decoder.layers[0].width
    with torch.device("meta"):
        made: Any = type(model)(config)
    shared = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in decoder.tensors.items()}
    if decoder.tied:
        shared["lm_head.weight"] = shared["model.embed_tokens.weight"]
    try:
        made.load_state_dict(shared, strict=True, assign=True)
    except RuntimeError as error:
        raise ExportError(f"a shorter network of its class has other tensors: {error}") from error
    made.tie_weights()
    made.model.rotary_emb = original.model.rotary_emb
    made.generation_config = copy.deepcopy(original.generation_config)
    return made.eval()
