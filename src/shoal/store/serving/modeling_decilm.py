"""A Llama of which some layers have no attention, or no MLP (Nemotron-NAS, DeciLM).

Shoal writes this file next to the weights, so that transformers reads the folder with `trust_remote_code`, and reads
exported files again through it. It needs nothing but torch and transformers.
"""

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from .configuration_decilm import DeciLMConfig  # the two files are copied together


def mlp_width(ffn: Any, hidden_size: int) -> int:
    """How wide an MLP is: two thirds of its multiple of the stream's width, rounded up to a multiple of 256."""
    if "intermediate_size" in ffn:
        return int(ffn["intermediate_size"])
    return -(-int(2 * ffn["ffn_mult"] * hidden_size / 3) // 256) * 256


class LinearAttention(nn.Module):
    """One map of the normalised stream in the place of an attention; it has no cache and looks at no other token."""

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """The map, and no weights of an attention."""
        return self.linear_attn(hidden_states), None


class DeciLMDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, either of which may be missing; `cache_idx` counts the attentions before this layer."""

    def __init__(self, config: DeciLMConfig, layer_idx: int, cache_idx: int) -> None:
        super().__init__()
        attention, ffn = config.block_configs[layer_idx].attention, config.block_configs[layer_idx].ffn
        self.self_attn = self.mlp = None
        if not attention.no_op:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not attention.no_op and attention.get("replace_with_linear"):
            self.self_attn = LinearAttention(config)
        elif not attention.no_op:
            local = copy.copy(config)
            local.num_key_value_heads = config.num_attention_heads // attention.n_heads_in_group
            self.self_attn = LlamaAttention(local, cache_idx)
            self.self_attn.config = config  # its choice of kernel is changed there
        if not ffn.no_op:
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            local = copy.copy(config)
            local.intermediate_size = mlp_width(ffn, config.hidden_size)
            self.mlp = LlamaMLP(local)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """The stream plus what the layer adds to it."""
        if self.self_attn is not None:
            branch, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + branch
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class DeciLMModel(LlamaModel):
    """The decoder without its head."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": DeciLMDecoderLayer, "attentions": LlamaAttention}  # noqa: RUF012

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        layers, attentions = [], 0
        for index, block in enumerate(config.block_configs):
            layers.append(DeciLMDecoderLayer(config, index, attentions))
            attentions += not (block.attention.no_op or block.attention.get("replace_with_linear"))
        self.layers = nn.ModuleList(layers)
        self.post_init()


class DeciLMForCausalLM(LlamaForCausalLM):
    """The decoder with its head."""

    config_class = DeciLMConfig
    _no_split_modules = ["DeciLMDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.post_init()
