"""Which networks of timm stand in the table: of every family the one with the fewest parameters.

A family is a module of `timm.models` or one of the names below, which share a module with others. timm's own toys for
its tests (`test_...`) are left out. Nothing else is asked: whether Shoal can work on a network is not known when it is
chosen.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timm.models import _registry as registry

# Families that live in another family's module, by how their names begin.
NAMED = (
    "resnet seresnet convnextv2 efficientnet mobilenetv4 vit_ deit deit3 coatnet maxvit poolformer mixer regnety eva02 "
    "repvgg resnext gernet caformer convformer resmlp gmlp fastvit_mci efficientnetv2 tf_efficientnetv2"
).split()


def chosen(cache: Path) -> list[str]:
    """The names, one a family, sorted; parameters are counted once and kept in `cache`."""
    sizes = _sizes(cache)
    smallest: dict[str, str] = {}
    for name, _ in sorted(sizes.items(), key=lambda item: (item[1], item[0])):
        if name.startswith("test_"):
            continue
        for family in _families(name):
            smallest.setdefault(family, name)
    return sorted(set(smallest.values()))


def _families(name: str) -> Iterator[str]:
    yield registry._model_to_module[name]
    yield from (f"named {prefix}" for prefix in NAMED if name.startswith(prefix))


def _sizes(cache: Path) -> dict[str, int]:
    if cache.exists():
        return dict(json.loads(cache.read_text()))
    sizes = {name: size for name in timm.list_models() if (size := _parameters(name)) is not None}
    cache.write_text(json.dumps(sizes, indent=0))
    return sizes


def _parameters(name: str) -> int | None:
    """How many, counted without memory for them; None for a network that cannot be made this way."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:  # noqa: BLE001 - each network refuses in its own way
        return None
    return sum(one.numel() for one in model.parameters())
