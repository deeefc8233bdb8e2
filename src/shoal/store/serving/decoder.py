"""A decoder built like Llama, read as a row of attentions and MLPs and packed again into as few layers as hold them.

Without the MLP of one layer and the attention of the next, what is left of the two is one whole layer. So many a cut by
units is an ordinary, shorter Llama, and of the others only some layers lack a part.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.errors import ExportError
from shoal.outputs import distance
from shoal.preserve import copied, evaluating

# Their code is that of Llama, with biases or windows that the configuration tells; a trial run confirms it.
CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer")
_ROPES = ("default", "linear", "llama3")
_Kind = Literal["attention", "mlp"]
_NORMS: dict[_Kind, str] = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
_MODULES: dict[_Kind, str] = {"attention": "self_attn", "mlp": "mlp"}
_MAPS: dict[_Kind, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_LINEAR_ATTENTION = "self_attn.linear_attn.weight"
_HINT = "Shoal loads the output folder itself: shoal.load(folder)."
TOLERANCE = 1e-3  # of the largest logit: what another order of the same sums may come to


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: how many heads its keys have (0: no attention), how wide its MLP is (0: none), what it was made of.

    With `linear_attention` a linear map of the normalised stream stands in the place of its attention.
    """

    kv_heads: int
    width: int
    parts: tuple[str, ...] = ()
    linear_attention: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it has both attention and MLP."""
        return bool(self.kv_heads and self.width)


@dataclass(frozen=True, eq=False)
class Decoder:
    """A decoder as data: the names of its tensors are those of a Llama of transformers with these layers."""

    hidden_size: int
    heads: int
    head_dim: int
    eps: float
    positions: int
    theta: float
    frequencies: Tensor
    tied: bool
    layers: tuple[DecoderLayer, ...]
    tensors: dict[str, Tensor]

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        return len(self.tensors["model.embed_tokens.weight"])

    @property
    def is_plain(self) -> bool:
        """Whether every layer is whole and like the others."""
        shapes = {(layer.kv_heads, layer.width) for layer in self.layers}
        return len(shapes) == 1 and self.layers[0].is_whole

    def has_bias(self, module: str) -> bool:
        """Whether any map of `self_attn` or `mlp` has a bias."""
        return any(f".{module}." in name and name.endswith(".bias") for name in self.tensors)


@dataclass(frozen=True)
class _HalfLayer:
    kind: _Kind
    path: str
    tensors: Mapping[str, Tensor]


def read_decoder(model: nn.Module) -> Decoder:
    """The decoder in a network of transformers, some of whose layers, attentions and MLPs may have been removed.

    Raises:
        ExportError: it is not built like Llama; names what is not, and where.
    """
    language_model: Any = model
    _check_class(language_model)
    units = list(_units(language_model))
    packed = list(_packed(units))
    if not packed:
        raise ExportError("no layer is left in the network", "Keep at least one.")
    tied = language_model.lm_head.weight is language_model.model.embed_tokens.weight
    outer = {
        "model.embed_tokens.weight": language_model.model.embed_tokens.weight,
        "model.norm.weight": language_model.model.norm.weight,
        **({} if tied else {"lm_head.weight": language_model.lm_head.weight}),
    }
    inner = {
        f"model.layers.{index}.{name}": tensor
        for index, layer in enumerate(packed)
        for unit in layer
        for name, tensor in unit.tensors.items()
    }
    _check_nothing_else(language_model, [*outer.values(), *inner.values()])
    config = language_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Decoder(
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=head_dim,
        eps=config.rms_norm_eps,
        positions=config.max_position_embeddings,
        theta=float(config.rope_parameters["rope_theta"]),
        frequencies=language_model.model.rotary_emb.inv_freq.detach().float().cpu(),
        tied=tied,
        layers=tuple(_layer(layer, head_dim) for layer in packed),
        tensors={name: tensor.detach() for name, tensor in (outer | inner).items()},
    )


def _check_class(model: Any) -> None:
    if type(model).__name__ not in CLASSES or not type(model).__module__.startswith("transformers."):
        raise ExportError(
            f"{type(model).__name__} is not built like Llama (RMSNorm, rotary positions, SwiGLU, no norm of queries)",
            f"Known are {', '.join(CLASSES)}. {_HINT}",
        )
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "use_sliding_window", True) and window and window < config.max_position_embeddings:
        kinds.add("sliding_attention")
    if kinds - {"full_attention"}:
        raise ExportError(f"its attention sees a window of {window} tokens only, which a Llama has no field for", _HINT)
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in _ROPES or config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ExportError(f"its positions are rotated by '{rope}', expected one of {', '.join(_ROPES)}", _HINT)
    if config.hidden_act not in ("silu", "swish"):
        raise ExportError(f"the activation of its MLPs is '{config.hidden_act}', expected 'silu'", _HINT)


def _units(model: Any) -> Iterator[_HalfLayer]:
    """The attentions and MLPs that are left, in order."""
    for index, layer in enumerate(model.model.layers):
        path = f"model.layers.{index}"
        if next(layer.parameters(), None) is None:  # its shortcut alone
            continue
        if type(layer).__name__ not in _LAYERS:
            raise ExportError(
                f"'{path}' is a {type(layer).__name__}, not a layer of Llama: no server has a field for a stand-in",
                f"Compress without --replace, or serve with Shoal. {_HINT}",
            )
        for kind, module in _MODULES.items():
            tensors = dict(layer.get_submodule(module).named_parameters(prefix=module))
            if tensors:
                tensors |= layer.get_submodule(_NORMS[kind]).named_parameters(prefix=_NORMS[kind])
                _check_unit(kind, path, tensors)
                yield _HalfLayer(kind, f"{path}.{module}", tensors)


def _check_unit(kind: _Kind, path: str, tensors: Mapping[str, Tensor]) -> None:
    needed = {f"{_NORMS[kind]}.weight", *(f"{_MODULES[kind]}.{name}.weight" for name in _MAPS[kind])}
    allowed = needed | {f"{_MODULES[kind]}.{name}.bias" for name in _MAPS[kind]}
    if _LINEAR_ATTENTION in tensors:
        needed = allowed = {f"{_NORMS[kind]}.weight", _LINEAR_ATTENTION}
    wrong = sorted((needed - tensors.keys()) | (tensors.keys() - allowed))
    if wrong:
        raise ExportError(f"'{path}' is not a layer of Llama: it differs in {', '.join(wrong[:3])}", _HINT)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            raise ExportError(
                f"'{path}.{name}' holds {str(tensor.dtype).removeprefix('torch.')}, not plain numbers",
                "Export the network before it is quantised; the servers quantise its file.",
            )


def _packed(units: list[_HalfLayer]) -> Iterator[tuple[_HalfLayer, ...]]:
    """Layers: an attention begins one, an MLP ends it."""
    layer: tuple[_HalfLayer, ...] = ()
    for unit in units:
        if layer and (unit.kind == "attention" or layer[-1].kind == "mlp"):
            yield layer
            layer = ()
        layer = (*layer, unit)
    if layer:
        yield layer


def _layer(units: tuple[_HalfLayer, ...], head_dim: int) -> DecoderLayer:
    kv_heads = width = 0
    linear_attention = False
    for unit in units:
        if _LINEAR_ATTENTION in unit.tensors:
            linear_attention = True
        elif unit.kind == "attention":
            kv_heads = len(unit.tensors["self_attn.k_proj.weight"]) // head_dim
        else:
            width = len(unit.tensors["mlp.gate_proj.weight"])
    return DecoderLayer(kv_heads, width, tuple(unit.path for unit in units), linear_attention)


def _check_nothing_else(model: Any, used: list[Tensor]) -> None:
    """Refuse tensors that the file would leave out, but for norms that nothing reads any more."""
    known = {id(tensor) for tensor in used}
    idle = tuple(f".{norm}.weight" for norm in _NORMS.values())
    others = [name for name, tensor in model.named_parameters() if id(tensor) not in known and not name.endswith(idle)]
    if others:
        raise ExportError(f"a Llama has no place for {', '.join(map(repr, others[:3]))}", _HINT)


def incomplete(decoder: Decoder) -> str:
    """The layers that lack a part, in words; empty where all are whole."""
    missing = [f"{' and '.join(layer.parts)} {_lacking(layer)}" for layer in decoder.layers if not layer.is_whole]
    more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
    return "; ".join(missing[:3]) + more


def _lacking(layer: DecoderLayer) -> str:
    if layer.linear_attention:
        return "has a linear map in the place of its attention"
    return "has no MLP behind it" if layer.kv_heads else "has no attention before it"


def check_first_attention(decoder: Decoder, reader: str) -> None:
    """Refuse a network that begins with an MLP.

    Raises:
        ExportError: names the MLP and who cannot read it.
    """
    first = decoder.layers[0]
    if first.linear_attention:
        raise ExportError(
            f"the network begins with '{first.parts[0]}', a linear map in the place of an attention, and {reader} "
            "takes the attention of the first layer for granted",
            "Keep the first attention: --exclude 'model.layers.0'.",
        )
    if not first.kv_heads:
        raise ExportError(
            f"the network begins with '{first.parts[0]}', no attention before it, and {reader} takes the attention of "
            "the first layer for granted",
            "Keep the first attention: --exclude 'model.layers.0'.",
        )


def with_width(decoder: Decoder, index: int, width: int) -> Decoder:
    """The same function with a wider MLP in one layer; one that has none gets one that adds zeros."""
    layer, tensors = decoder.layers[index], dict(decoder.tensors)
    prefix = f"model.layers.{index}"
    like = tensors["model.norm.weight"]
    if not layer.width:
        tensors[f"{prefix}.post_attention_layernorm.weight"] = torch.ones_like(like)
    for name in _MAPS["mlp"]:
        key, axis = f"{prefix}.mlp.{name}.weight", 1 if name == "down_proj" else 0
        shape = [decoder.hidden_size, decoder.hidden_size]
        shape[axis] = width - layer.width
        zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
        tensors[key] = torch.cat([tensors[key], zeros.to(tensors[key])], axis) if layer.width else zeros
        bias = f"{prefix}.mlp.{name}.bias"
        if bias in tensors and name != "down_proj":
            tensors[bias] = torch.cat([tensors[bias], tensors[bias].new_zeros(width - layer.width)])
    layers = list(decoder.layers)
    layers[index] = replace(layer, width=width)
    return replace(decoder, layers=tuple(layers), tensors=tensors)


def with_all_biases(decoder: Decoder, kind: _Kind) -> Decoder:
    """The same function where, if any map of the attentions or MLPs has a bias, all have one, of zeros."""
    if not decoder.has_bias(_MODULES[kind]):
        return decoder
    tensors = dict(decoder.tensors)
    for index, name in itertools.product(range(len(decoder.layers)), _MAPS[kind]):
        key = f"model.layers.{index}.{_MODULES[kind]}.{name}"
        if f"{key}.weight" in tensors and f"{key}.bias" not in tensors:
            tensors[f"{key}.bias"] = tensors[f"{key}.weight"].new_zeros(len(tensors[f"{key}.weight"]))
    return replace(decoder, tensors=tensors)


def build(decoder: Decoder) -> nn.Module:
    """The network of transformers that computes a decoder, in float32, by the code that is written with it."""
    from shoal.store.serving.configuration_decilm import DeciLMConfig
    from shoal.store.serving.modeling_decilm import DeciLMForCausalLM

    decoder = with_all_biases(with_all_biases(decoder, "attention"), "mlp")
    config = DeciLMConfig(**plain_config(decoder), block_configs=[_exact_block(decoder, k) for k in decoder.layers])
    with torch.device("meta"):
        model: Any = DeciLMForCausalLM(config)
    tensors = {name: tensor.float().cpu() for name, tensor in decoder.tensors.items()}
    if decoder.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ExportError(f"the tensors do not make a Llama: {str(error).splitlines()[-1].strip()}") from error
    model.model.rotary_emb.inv_freq = decoder.frequencies
    return model.eval()


def plain_config(decoder: Decoder) -> dict[str, Any]:
    """The fields of a Llama's configuration, without those of single layers."""
    return {
        "vocab_size": decoder.vocabulary,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": max(layer.width for layer in decoder.layers) or decoder.hidden_size,
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": max(layer.kv_heads for layer in decoder.layers) or decoder.heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": decoder.positions,
        "rms_norm_eps": decoder.eps,
        "rope_theta": decoder.theta,
        "attention_bias": decoder.has_bias("self_attn"),
        "mlp_bias": decoder.has_bias("mlp"),
        "tie_word_embeddings": decoder.tied,
    }


def _exact_block(decoder: Decoder, layer: DecoderLayer) -> dict[str, Any]:
    group = decoder.heads // layer.kv_heads if layer.kv_heads else None
    return {
        "attention": {
            "no_op": not layer.kv_heads and not layer.linear_attention,
            "replace_with_linear": layer.linear_attention,
            "n_heads_in_group": group,
        },
        "ffn": {"no_op": not layer.width, "intermediate_size": layer.width},
    }


@dataclass(frozen=True)
class Agreement:
    """How far logits are from the network's: the largest deviation, and how often both name the same next token."""

    max_abs_diff: float
    same_token: float
    n: int


def compare(model: nn.Module, loaded: nn.Module, *, rounding: torch.dtype | None = None) -> Agreement:
    """Compare what was loaded again with the network, on random tokens, both in float32.

    Args:
        model: the network that was written.
        loaded: what was read from the file.
        rounding: what the matrices were rounded to in the file, which they are for the check too.

    Raises:
        ExportError: it computes something else, or a number was too large for the file.
    """
    expected: Any = copied(model).to("cpu").float()
    tokens = trial_tokens(expected)
    with evaluating(expected), evaluating(loaded):
        exact = _logits(expected, tokens)
        actual = _logits(loaded, tokens)
        if rounding is not None:
            for parameter in expected.parameters():
                if parameter.dim() > 1:
                    parameter.data = parameter.data.to(rounding).float()
        rounded = _logits(expected, tokens)
    off = distance(rounded, actual).largest
    scale = max(float(rounded.abs().max()), 1.0)
    if not off <= TOLERANCE * scale:  # which NaN is not either
        raise ExportError(
            f"loaded again it computes something else: its logits are up to {off:.3g} away (largest {scale:.3g})",
            "Its class computes more than a Llama does, or a weight is too large for the file's type.",
        )
    same = float((actual.argmax(-1) == exact.argmax(-1)).float().mean())
    return Agreement(distance(exact, actual).largest, same, tokens.numel())


def trial_tokens(model: Any) -> Tensor:
    """Random tokens that a network can be tried on."""
    length = min(16, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(model.get_input_embeddings().weight), (2, length), generator=generator)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits
