"""Keep cached generation right in a network of transformers that lost attentions but not their places.

A cache has a slot for each layer, and transformers asks the first slot of each kind (full attention, a sliding window)
how long the text is so far. A slot whose attention is gone stays empty and says: nothing yet. So the first attention
that is left takes that slot; where none of its kind is left the cache is switched off.
"""

import re
from typing import Any

from torch import nn


def attention_slots(model: nn.Module) -> dict[str, dict[int, nn.Module]]:
    """The modules that know their slot of the cache, by path without the number of the layer, then by slot."""
    found: dict[str, dict[int, nn.Module]] = {}
    for path, module in model.named_modules():
        slot = getattr(module, "layer_idx", None)
        numbered = re.fullmatch(r"(.*?)\.(\d+)\.([^.\d][^\d]*)", path)
        if type(slot) is int and numbered and any(True for _ in module.parameters()):
            found.setdefault(f"{numbered[1]}.*.{numbered[3]}", {})[slot] = module
    return found


def repair_kv_cache_(model: nn.Module, before: dict[str, dict[int, nn.Module]]) -> None:
    """Give the slots that are asked for the length to attentions that are left.

    Args:
        model: a network that lost modules.
        before: what `attentions_of` found when it was whole.
    """
    after = attention_slots(model)
    for place, slots in before.items():
        left = after.get(place, {})
        kinds = _kinds(model, max(slots) + 1)
        for kind in dict.fromkeys(kinds):
            own = [slot for slot, one in enumerate(kinds) if one == kind and slot in slots]
            staying = [slot for slot in own if slot in left]
            if not own or own[0] in left:
                continue
            if staying:
                left[staying[0]].layer_idx = own[0]  # type: ignore[assignment]
            elif own[0] == 0:
                _switch_off(model)


def _kinds(model: nn.Module, count: int) -> list[str]:
    """What each slot of the cache is for, as far as the configuration says it."""
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if isinstance(kinds, list) and len(kinds) >= count else ["attention"] * count


def _switch_off(model: nn.Module) -> None:
    for holder in ("config", "generation_config"):
        settings: Any = getattr(model, holder, None)
        if settings is not None and hasattr(settings, "use_cache"):
            settings.use_cache = False
