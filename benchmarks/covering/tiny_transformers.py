"""Small networks of transformers with random weights, each with a small input, by a name of the table."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Inputs = dict[str, Tensor]
_DEEP = 4

_DECODER: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": _DEEP,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER: dict[str, Any] = {key: one for key, one in _DECODER.items() if key != "num_key_value_heads"}
_GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": _DEEP, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
_IMAGE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": _DEEP,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_MAMBA = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": _DEEP, "state_size": 8}
_DISTIL = {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": _DEEP, "n_heads": 4}
_T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": _DEEP, "num_heads": 4}
_TWO = {
    "d_model": 32,
    "encoder_layers": _DEEP,
    "decoder_layers": _DEEP,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_WHISPER = {"num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 32}
_SWIN = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 10}
_CONVNEXT = {"hidden_sizes": [16, 32], "depths": [3, 3], "num_stages": 2, "num_labels": 10}
_RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [3, 3], "layer_type": "basic", "num_labels": 10}
_TEXT = {**_ENCODER, "projection_dim": 16}

_WAVE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": _DEEP,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
_SEGFORMER = {
    "depths": [2, 2],
    "num_encoder_blocks": 2,
    "hidden_sizes": [16, 32],
    "num_attention_heads": [2, 4],
    "sr_ratios": [2, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
    "num_labels": 5,
}
_DPT = {
    **_IMAGE,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [16, 16, 16, 16],
    "fusion_hidden_size": 16,
    "is_hybrid": False,
}
_SERIES = {"num_input_channels": 2, "context_length": 64, "prediction_length": 8, "patch_length": 8, "patch_stride": 8}
_PATCHTST = {**_SERIES, "d_model": 32, "num_hidden_layers": _DEEP, "num_attention_heads": 4, "ffn_dim": 64}
_MIXER = {**_SERIES, "d_model": 32, "num_layers": _DEEP}

# name: (class, configuration, its arguments, the kinds of its inputs)
_TABLE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER, "text"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER, "text"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 8}, "text"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _DECODER, "text"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "head_dim": 8}, "text"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, "head_dim": 8}, "text"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _DECODER, "text"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2, "text"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _ENCODER, "text"),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_ENCODER, "ffn_dim": 64, "word_embed_proj_dim": 32}, "text"),
    "falcon": ("FalconForCausalLM", "FalconConfig", _ENCODER, "text"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_DECODER, "num_local_experts": 4}, "text"),
    "mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA, "text"),
    "bert": ("BertForSequenceClassification", "BertConfig", _ENCODER, "text"),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _ENCODER, "text"),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL, "text"),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig", _ENCODER, "text"),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_T5, "decoder_start_token_id": 0}, "text decoder"),
    "bart": ("BartForConditionalGeneration", "BartConfig", {**_TWO, "max_position_embeddings": 64}, "text decoder"),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE, "image32"),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**_IMAGE, "mlp_ratio": 2}, "image32"),
    "swin": ("SwinForImageClassification", "SwinConfig", _SWIN, "image64"),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", _CONVNEXT, "image64"),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", _RESNET, "image64"),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**_TWO, **_WHISPER}, "sound decoder"),
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", _WAVE, "wave"),
    "hubert": ("HubertForCTC", "HubertConfig", _WAVE, "wave"),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", _SEGFORMER, "image64"),
    "dpt": ("DPTForDepthEstimation", "DPTConfig", _DPT, "image32"),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", _TEXT, "text"),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**_IMAGE, "projection_dim": 16}, "image32"),
    "patchtst": ("PatchTSTForPrediction", "PatchTSTConfig", _PATCHTST, "series"),
    "patchtsmixer": ("PatchTSMixerForPrediction", "PatchTSMixerConfig", _MIXER, "series"),
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": _TEXT, "vision_config": _IMAGE}, "text image32"),
    "siglip": ("SiglipModel", "SiglipConfig", {"text_config": _ENCODER, "vision_config": _IMAGE}, "text image32"),
}

# Where a network has two chains, each has a row of its own: the blocks below this path.
TWO = {
    "t5": ("encoder.", "decoder."),
    "bart": ("model.encoder.", "model.decoder."),
    "whisper": ("model.encoder.", "model.decoder."),
    "clip": ("text_model.", "vision_model."),
    "siglip": ("text_model.", "vision_model."),
}


def names() -> list[str]:
    """All of them."""
    return list(_TABLE)


def import_all() -> None:
    """Import what the networks are made of, once for all processes that are forked later."""
    for model, config, _, _ in _TABLE.values():
        getattr(hf, model), getattr(hf, config)


def made(name: str) -> nn.Module:
    """The network, with random weights."""
    model, config, given, _ = _TABLE[name]
    return getattr(hf, model)(getattr(hf, config)(**given)).eval()


def inputs(name: str) -> Inputs:
    """A mini-batch of two, as keyword arguments."""
    found: Inputs = {}
    generator = torch.Generator().manual_seed(0)
    for kind in _TABLE[name][3].split():
        if kind == "text":
            found["input_ids"] = torch.randint(3, 100, (2, 16), generator=generator)
            found["attention_mask"] = torch.ones(2, 16, dtype=torch.long)
        elif kind == "decoder":
            found["decoder_input_ids"] = torch.randint(3, 100, (2, 12), generator=generator)
        elif kind == "wave":
            found["input_values"] = torch.randn(2, 3200, generator=generator)
        elif kind == "series":
            found["past_values"] = torch.randn(2, 64, 2, generator=generator)
        elif kind == "sound":
            found["input_features"] = torch.randn(2, 16, 32, generator=generator)
        else:
            side = int(kind.removeprefix("image"))
            found["pixel_values"] = torch.randn(2, 3, side, side, generator=generator)
    return found
