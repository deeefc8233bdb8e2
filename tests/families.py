"""Tiny networks of many families of transformers, with four layers a list and an input for each."""

import torch
import transformers as hf

LAYERS = 4
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BASE = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 40, **_IDS,
}  # fmt: skip
_GROUPED = {**_BASE, "num_key_value_heads": 2}
_WINDOWED = {**_GROUPED, "head_dim": 8, "sliding_window": 6}
_IMAGES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_OPT = {
    "vocab_size": 99, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": 40, "word_embed_proj_dim": 32, **_IDS,
}  # fmt: skip
_HALVES = {
    "d_model": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 99, **_IDS, "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": LAYERS, "num_decoder_layers": LAYERS,
    "vocab_size": 99, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_WHISPER = {**_HALVES, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 24}
_DINO = {key: value for key, value in _IMAGES.items() if key != "intermediate_size"}
_GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 40, "vocab_size": 99, **_IDS}
_DISTIL = {
    "dim": 32, "hidden_dim": 48, "n_layers": LAYERS, "n_heads": 4, "max_position_embeddings": 40, "vocab_size": 99,
    "pad_token_id": 0,
}  # fmt: skip
_FALCON = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": 99, **_IDS}

# name: (class, configuration, inputs, blocks to remove)
_TABLE = {
    "llama": ("LlamaForCausalLM", lambda: hf.LlamaConfig(**_GROUPED), "text", "model.layers.0 model.layers.2"),
    "qwen2": ("Qwen2ForCausalLM", lambda: hf.Qwen2Config(**_GROUPED), "text", "model.layers.0 model.layers.2"),
    "qwen3": ("Qwen3ForCausalLM", lambda: hf.Qwen3Config(**_GROUPED, head_dim=8), "text", "model.layers.1"),
    "mistral": ("MistralForCausalLM", lambda: hf.MistralConfig(**_GROUPED, sliding_window=6), "text", "model.layers.0"),
    "gemma2": ("Gemma2ForCausalLM", lambda: hf.Gemma2Config(**_WINDOWED), "text", "model.layers.0 model.layers.3"),
    "gemma3": ("Gemma3ForCausalLM", lambda: hf.Gemma3TextConfig(**_WINDOWED), "text", "model.layers.1"),
    "phi3": ("Phi3ForCausalLM", lambda: hf.Phi3Config(**_GROUPED), "text", "model.layers.0 model.layers.2"),
    "gpt2": ("GPT2LMHeadModel", lambda: hf.GPT2Config(**_GPT2), "text", "transformer.h.0 transformer.h.2"),
    "gpt_neox": ("GPTNeoXForCausalLM", lambda: hf.GPTNeoXConfig(**_BASE), "text", "gpt_neox.layers.1"),
    "opt": ("OPTForCausalLM", lambda: hf.OPTConfig(**_OPT), "text", "model.decoder.layers.0"),
    "falcon": ("FalconForCausalLM", lambda: hf.FalconConfig(**_FALCON), "text", "transformer.h.0 transformer.h.2"),
    "bert": ("BertForMaskedLM", lambda: hf.BertConfig(**_BASE), "text", "bert.encoder.layer.1"),
    "roberta": ("RobertaForMaskedLM", lambda: hf.RobertaConfig(**_BASE), "text", "roberta.encoder.layer.1"),
    "distilbert": (
        "DistilBertForMaskedLM", lambda: hf.DistilBertConfig(**_DISTIL), "text", "distilbert.transformer.layer.1",
    ),
    "modernbert": (
        "ModernBertForMaskedLM", lambda: hf.ModernBertConfig(**_BASE, local_attention=4), "text", "model.layers.1",
    ),
    "t5": (
        "T5ForConditionalGeneration", lambda: hf.T5Config(**_T5), "both",
        "encoder.block.1.layer.0 encoder.block.1.layer.1 decoder.block.2.layer.0 decoder.block.2.layer.1 "
        "decoder.block.2.layer.2",
    ),
    "bart": ("BartForConditionalGeneration", lambda: hf.BartConfig(**_HALVES), "both", "model.encoder.layers.1"),
    "vit": ("ViTForImageClassification", lambda: hf.ViTConfig(**_IMAGES), "image", "vit.layers.0 vit.layers.2"),
    "dinov2": (
        "Dinov2ForImageClassification", lambda: hf.Dinov2Config(**_DINO), "image", "dinov2.encoder.layer.3",
    ),
    "whisper": (
        "WhisperForConditionalGeneration", lambda: hf.WhisperConfig(**_WHISPER), "sound",
        "model.encoder.layers.1 model.decoder.layers.0 model.decoder.layers.2",
    ),
    "clip": (
        "CLIPModel", lambda: hf.CLIPConfig(text_config=_BASE, vision_config=_IMAGES, projection_dim=16), "pair",
        "vision_model.encoder.layers.1 text_model.encoder.layers.0 text_model.encoder.layers.2",
    ),
    "siglip": (
        "SiglipModel", lambda: hf.SiglipConfig(text_config={**_BASE, "projection_size": 32}, vision_config=_IMAGES),
        "pair", "vision_model.encoder.layers.1 text_model.encoder.layers.2",
    ),
}  # fmt: skip

NAMES = list(_TABLE)
# Their layers end in norms that stay when a layer goes, and no class of theirs has norms without a layer.
POST_NORM = ["bert", "roberta", "distilbert", "bart"]


def family(name):
    """A network in eval mode, the keyword arguments it is called with, and the blocks to take out of it."""
    kind, config, inputs, removed = _TABLE[name]
    torch.manual_seed(0)
    model = getattr(hf, kind)(config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # As they begin, norms are ones, biases zeros, and every layer so small that nothing it does would show.
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    return model, _inputs(inputs), [_present(model, path) for path in removed.split()]


def _present(model, path):
    """The path of a layer under the name that this version of transformers has for its list."""
    former = path.replace("vit.layers.", "vit.encoder.layer.")
    return former if former in dict(model.named_modules()) else path


def _inputs(kind):
    ids = torch.randint(4, 99, (2, 12), generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 3, 16, 16, generator=noise)
    return {
        "text": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "both": {"input_ids": ids, "decoder_input_ids": ids[:, :6]},
        "image": {"pixel_values": pixels},
        "sound": {"input_features": torch.randn(2, 8, 16, generator=noise), "decoder_input_ids": ids[:, :6]},
        "pair": {"input_ids": ids, "pixel_values": pixels},
    }[kind]
