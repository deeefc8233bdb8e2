"""The configuration of a decoder whose layers are not alike: attention or MLP may be missing (Nemotron-NAS, DeciLM).

Shoal writes this file next to the weights, so that transformers and vLLM read the folder with `trust_remote_code`. It
needs nothing but transformers.
"""

from typing import Any

from transformers import LlamaConfig


class Settings(dict):
    """What a layer holds, by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """A Llama with one entry of `block_configs` for each layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Settings({part: Settings(settings) for part, settings in block.items()}) for block in block_configs or ()
        ]
