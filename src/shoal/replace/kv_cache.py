"""Run a transformers model without its key-value cache.

With a cache every block gets the same cache object and appends to it. Running a block a second time, outside the
network, would append again, and the block would see every position twice.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_kv_cache(model: nn.Module) -> Iterator[nn.Module]:
    """Set `use_cache` to False in every configuration of the network for the duration of the context.

    A cache that a caller requests (`use_cache=True` in a mini-batch) is still made: see `is_kv_cache`.
    """
    with ExitStack() as stack:
        for config in _configurations(model):
            stack.callback(setattr, config, "use_cache", True)
            config.use_cache = False
        yield model


def is_kv_cache(value: Any) -> bool:
    """Whether an argument of a block is a cache of transformers, or has the same interface."""
    return all(callable(getattr(value, name, None)) for name in ("update", "get_seq_length"))


def _configurations(model: nn.Module) -> list[Any]:
    """Every configuration in a network that switches a cache on, once each; modules may share one."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if getattr(config, "use_cache", None) is True}.values())
