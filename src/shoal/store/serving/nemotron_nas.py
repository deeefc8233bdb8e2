"""A folder in the form of Nemotron-NAS (DeciLM): a Llama of which some layers have no attention, or no MLP.

vLLM, TensorRT-LLM and MLX read it, and transformers with the code that lies in it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from shoal.errors import ExportError
from shoal.files.tensors import write_tensors
from shoal.files.writing import write_text
from shoal.store.serving.decoder import (
    Agreement,
    Decoder,
    DecoderLayer,
    check_first_attention,
    compare,
    plain_config,
    read_decoder,
    with_all_biases,
    with_width,
)

_STEP = 256  # the format knows no other widths of an MLP than multiples of it
_CODE = ("configuration_decilm.py", "modeling_decilm.py")
WEIGHTS = "model.safetensors"


def decoder_for_nas(model: nn.Module) -> Decoder:
    """The decoder in a network as the format can hold it: MLPs filled up with zeros, biases everywhere or nowhere.

    Raises:
        ExportError: the format cannot hold it; says why.
    """
    decoder = read_decoder(model)
    check_first_attention(decoder, "vLLM")
    if decoder.head_dim * decoder.heads != decoder.hidden_size:
        raise ExportError(
            f"its heads are {decoder.head_dim} wide, and the format knows no other than {decoder.hidden_size} / "
            f"{decoder.heads} (width of the stream / heads)",
            "Use --gguf.",
        )
    for index, layer in enumerate(decoder.layers):
        if layer.width % _STEP:
            decoder = with_width(decoder, index, layer.width + -layer.width % _STEP)
    return with_all_biases(with_all_biases(decoder, "attention"), "mlp")


def write_nemotron_nas(place: Path, model: nn.Module) -> Agreement:
    """Write configuration, weights and the code for transformers into an existing, empty folder, and load it again.

    Raises:
        ExportError: the format cannot hold the network, or the folder computes something else.
    """
    decoder = decoder_for_nas(model)
    write_tensors(place / WEIGHTS, decoder.tensors, {"format": "pt"})
    write_text(place / "config.json", json.dumps(_config(decoder, model), indent=2) + "\n")
    for name in _CODE:
        shutil.copyfile(Path(__file__).with_name(name), place / name)
    return _reloaded(place, model)


def _config(decoder: Decoder, model: Any) -> dict[str, Any]:
    rope = {key: value for key, value in model.config.rope_parameters.items() if key != "rope_theta"}
    first = next(iter(decoder.tensors.values()))
    return {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM",
        },
        "model_type": "nemotron-nas",
        **plain_config(decoder),
        "hidden_act": "silu",
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "torch_dtype": str(first.dtype).removeprefix("torch."),
        **{key: getattr(model.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "block_configs": [_block(decoder, layer) for layer in decoder.layers],
    }


def _block(decoder: Decoder, layer: DecoderLayer) -> dict[str, Any]:
    """What one layer holds; every key is there, since some readers ask for it and others refuse unknown ones."""
    group = decoder.heads // layer.kv_heads if layer.kv_heads else None
    multiple = 1.5 * layer.width / decoder.hidden_size if layer.width else None
    return {
        "attention": {
            "n_heads_in_group": group,
            "no_op": group is None and not layer.linear_attention,
            "replace_with_linear": layer.linear_attention,
        },
        "ffn": {"ffn_mult": multiple, "no_op": multiple is None, "replace_with_linear": False},
    }


def _reloaded(place: Path, model: nn.Module) -> Agreement:
    import torch

    from shoal.store.serving.modeling_decilm import DeciLMForCausalLM

    try:
        loaded, info = DeciLMForCausalLM.from_pretrained(place, output_loading_info=True, dtype=torch.float32)
    except Exception as error:
        raise ExportError(f"transformers does not load it again: {error}") from error
    wrong = sorted(name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key])
    if wrong:
        raise ExportError(f"loaded again it has other tensors: {', '.join(map(str, wrong[:3]))}")
    return compare(model, loaded)
