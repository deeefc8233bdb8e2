"""Small denoising networks of diffusers with random weights, each with a small input, by a name of the table."""

from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
_TEXT = {
    "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
_DIT = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
    "norm_num_groups": 4,
}

# name: (class, its arguments)
_TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("UNet2DModel", {**_CONVOLUTIONS, **_PLAIN}),
    "unet_text": ("UNet2DConditionModel", {**_CONVOLUTIONS, **_TEXT}),
    "dit": ("DiTTransformer2DModel", _DIT),
}


def names() -> list[str]:
    """All of them."""
    return list(_TABLE)


def made(name: str) -> nn.Module:
    """The network, with random weights."""
    import diffusers

    kind, options = _TABLE[name]
    return getattr(diffusers, kind)(**options).eval()


def inputs(name: str) -> dict[str, Tensor]:
    """A mini-batch of two, as keyword arguments."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 8, 8, generator=generator)
    given = {"hidden_states" if name == "dit" else "sample": latent, "timestep": torch.tensor([10, 500])}
    if name == "dit":
        given["class_labels"] = torch.tensor([1, 2])
    if name == "unet_text":
        given["encoder_hidden_states"] = torch.randn(2, 6, 16, generator=generator)
    return given
