"""Run a network of transformers without its cache of keys and values.

With a cache every block is handed the one that all blocks fill. A block that runs once more, beside the network, would
add to what is in it: it would then see every position twice.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_kv_cache(model: nn.Module) -> Iterator[nn.Module]:
    """The network with its caches switched off by default, as its configurations say it; they come back at the end.

    A cache that a caller asks for (`use_cache=True` in a mini-batch) is made all the same: see `is_cache`.
    """
    with ExitStack() as stack:
        for config in _configurations(model):
            stack.callback(setattr, config, "use_cache", True)
            config.use_cache = False
        yield model


def is_kv_cache(value: Any) -> bool:
    """Whether something that was handed to a block is a cache of transformers, or has the same interface."""
    return all(callable(getattr(value, name, None)) for name in ("update", "get_seq_length"))


def _configurations(model: nn.Module) -> list[Any]:
    """Every configuration in a network that switches a cache on, once; the parts of a network may share one."""
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(one): one for one in found if getattr(one, "use_cache", None) is True}.values())
