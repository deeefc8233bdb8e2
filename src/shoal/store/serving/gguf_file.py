"""A GGUF file for llama.cpp and all that is built on it: `llama` where every layer is whole, else `deci`.

The rotation of positions takes neighbouring features there, and features half a head apart in transformers: the rows of
the maps to queries and keys change places. Norms and biases are float32, matrices of the type requested.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from shoal.errors import ExportError, UsageError
from shoal.store.serving.decoder import (
    Agreement,
    Decoder,
    DecoderLayer,
    build,
    check_first_attention,
    compare,
    read_decoder,
    with_width,
)
from shoal.store.serving.gguf_vocabulary import Vocabulary

NumberType = Literal["auto", "f32", "f16", "bf16"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_STUB_WIDTH = 32
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.linear_attn": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufContent:
    """What goes into a GGUF file.

    Args:
        decoder: the network.
        dtype: of its matrices.
        name: of the network, for people.
        vocabulary: None where the file has no tokenizer.
    """

    decoder: Decoder
    dtype: torch.dtype
    name: str
    vocabulary: Vocabulary | None = None

    @property
    def architecture(self) -> str:
        """What llama.cpp calls it."""
        return "llama" if self.decoder.is_plain else "deci"


def gguf_library() -> Any:
    """The library `gguf`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UsageError(f"GGUF needs the package {error.name}", "pip install 'shoal[gguf]'") from error
    return gguf


def decoder_for_gguf(model: nn.Module) -> Decoder:
    """The decoder in a network as llama.cpp can hold it.

    In llama.cpp a layer without an MLP forgets its attention; so a narrow MLP that adds zeros is written there.

    Raises:
        ExportError: llama.cpp has no form for it; says why.
    """
    decoder = read_decoder(model)
    check_first_attention(decoder, "llama.cpp")
    for index, layer in enumerate(decoder.layers):
        if not layer.width:
            decoder = with_width(decoder, index, _STUB_WIDTH)
    return decoder


def read_number_type(text: str) -> NumberType:
    """The type of numbers that a text names.

    Raises:
        UsageError: there is no such type.
    """
    for name in get_args(NumberType):
        if text == name:
            return name
    raise UsageError(f"there is no type '{text}' of numbers", f"Give one of {', '.join(get_args(NumberType))}.")


def number_type(requested: NumberType, decoder: Decoder) -> torch.dtype:
    """The type of the matrices in the file; `auto` keeps that of the network, or takes the one that holds it."""
    if read_number_type(requested) != "auto":
        return DTYPES[requested]
    own = decoder.tensors["model.embed_tokens.weight"].dtype
    return own if own in DTYPES.values() else torch.float32


def write_gguf(path: Path, content: GgufContent) -> None:
    """Write the file."""
    gguf = gguf_library()
    writer = gguf.GGUFWriter(path, content.architecture)
    try:
        _add_settings(gguf, writer, content)
        if content.vocabulary is None:
            writer.add_tokenizer_model("none")
        else:
            _add_vocabulary(writer, content.vocabulary)
        for name, tensor in _named(content.decoder).items():
            matrix = tensor.dim() > 1
            kind = content.dtype if matrix else torch.float32
            data = tensor.detach().cpu().to(kind).contiguous()
            if kind is torch.bfloat16:
                writer.add_tensor(name, data.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(name, data.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_settings(gguf: Any, writer: Any, content: GgufContent) -> None:
    decoder, layers = content.decoder, content.decoder.layers
    kinds = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    # Heads without keys: what llama.cpp calls linear attention, the output map alone.
    heads = [decoder.heads if layer.kv_heads or layer.linear_attention else 0 for layer in layers]
    kv_heads, widths = [layer.kv_heads for layer in layers], [layer.width for layer in layers]
    alike = content.architecture == "llama"
    writer.add_name(content.name)
    writer.add_file_type(gguf.LlamaFileType[kinds[content.dtype]])
    writer.add_vocab_size(decoder.vocabulary)
    writer.add_context_length(decoder.positions)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_head_count(heads[0] if alike else heads)
    writer.add_head_count_kv(kv_heads[0] if alike else kv_heads)
    writer.add_feed_forward_length(widths[0] if alike else widths)
    writer.add_layer_norm_rms_eps(decoder.eps)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(decoder.theta)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)


def _named(decoder: Decoder) -> dict[str, Tensor]:
    """The tensors by their names in the file, the rows of queries and keys in its order."""
    tensors = {}
    for name, tensor in decoder.tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{_gguf_name(module)}.{leaf}"] = (
            _neighbouring(tensor, decoder.head_dim) if module.endswith(_ROTATED) else tensor
        )
    factors = _plain_frequencies(decoder) / decoder.frequencies
    if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        tensors[_FREQUENCIES] = factors
    return tensors


def _gguf_name(module: str) -> str:
    if module in _OUTER:
        return _OUTER[module]
    _, _, index, inner = module.split(".", 3)
    return f"blk.{index}.{_INNER[inner]}"


def _plain_frequencies(decoder: Decoder) -> Tensor:
    return 1.0 / decoder.theta ** (torch.arange(0, decoder.head_dim, 2, dtype=torch.float32) / decoder.head_dim)


def _neighbouring(rows: Tensor, head_dim: int) -> Tensor:
    """Feature i of the first half of each head next to feature i of the second."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _half_apart(rows: Tensor, head_dim: int) -> Tensor:
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def read_gguf(path: Path) -> Decoder:
    """The decoder in a file that `write_gguf` wrote, in float32."""
    gguf = gguf_library()
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()

    def field(name: str) -> Any:
        return reader.get_field(f"{architecture}.{name}").contents()

    stored = {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }
    count, head_dim = field("block_count"), field("attention.key_length")
    heads, kv_heads, widths = (
        _per_layer(field(name), count)
        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    layers = tuple(
        DecoderLayer(kv, width, linear_attention=bool(query and not kv))
        for query, kv, width in zip(heads, kv_heads, widths, strict=True)
    )
    decoder = Decoder(
        hidden_size=field("embedding_length"),
        heads=max(heads),
        head_dim=head_dim,
        eps=field("attention.layer_norm_rms_epsilon"),
        positions=field("context_length"),
        theta=field("rope.freq_base"),
        frequencies=torch.ones(1),
        tied="output.weight" not in stored,
        layers=layers,
        tensors=_original_names(stored, head_dim, layers),
    )
    factors = stored.get(_FREQUENCIES, torch.ones(1))
    return replace(decoder, frequencies=_plain_frequencies(decoder) / factors)


def _per_layer(value: Any, count: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * count


def _original_names(stored: dict[str, Tensor], head_dim: int, layers: Sequence[DecoderLayer]) -> dict[str, Tensor]:
    outer, inner = ({new: old for old, new in names.items()} for names in (_OUTER, _INNER))
    tensors = {}
    for name, tensor in stored.items():
        if name == _FREQUENCIES:
            continue
        module, _, leaf = name.rpartition(".")
        if module in outer:
            tensors[f"{outer[module]}.{leaf}"] = tensor
            continue
        _, index, part = module.split(".")
        original = inner[part]
        if part == "attn_output":
            original = "self_attn.linear_attn" if layers[int(index)].linear_attention else "self_attn.o_proj"
        rows = _half_apart(tensor, head_dim) if original in _ROTATED else tensor
        tensors[f"model.layers.{index}.{original}.{leaf}"] = rows
    return tensors


def check_gguf(path: Path, model: nn.Module, dtype: torch.dtype) -> Agreement:
    """Read the file again and compare it with the network.

    Raises:
        ExportError: it computes something else.
    """
    try:
        loaded = build(read_gguf(path))
    except (ValueError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"the GGUF file cannot be read again: {error}") from error
    return compare(model, loaded, rounding=dtype)
