"""The cut network on disk, so that an interrupted recovery goes on with the very plan it began with.

Latencies are measured anew in every process, and a plan made from them may come out otherwise.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from shoal.batches import Batch, device_of
from shoal.blocks import analyze
from shoal.errors import FolderError, UsageError
from shoal.files.reading import refusing
from shoal.fingerprint import as_json, check_fingerprint, digest_of
from shoal.pipeline.context import CompressContext
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.planner import function_id
from shoal.pipeline.result import CompressedModel
from shoal.plan import Remove, Replace
from shoal.preserve import copied
from shoal.store.checkpoint import load_checkpoint, save_checkpoint
from shoal.surgery import model_digest, remove_blocks_
from shoal.surgery.replace import replace_spans_

CUT = "cut.safetensors"


_CHOICE: TypeAdapter[RemovalChoice] = TypeAdapter(RemovalChoice)
_ACTIONS: TypeAdapter[list[Remove | Replace]] = TypeAdapter(list[Remove | Replace])


def cut_fingerprint(told: CompressContext, latency_from: str | Path | None, try_plans: int) -> dict[str, Any]:
    """All that the choice depends on, but for the clock.

    Args:
        told: network, goal, samples, settings and damage.
        latency_from: latencies of another device; None for those measured here.
        try_plans: how many plans contend.
    """
    known = {
        "network": model_digest(told.model)[:16],
        "goal": told.goal.to_dict(),
        "chosen_on": digest_of(told.chosen_on),
        "judged_on": digest_of(told.judged_on or []),
        "device": str(device_of(told.model)),
        "settings": asdict(told.settings),
        "latency_from": str(latency_from) if latency_from is not None else None,
        "damage": function_id(told.damage),
        "try_plans": try_plans,
    }
    return as_json(known)


def save_cut(folder: Path, cut: CompressedModel, claim: dict[str, Any]) -> None:
    """Write it whole, or not at all; `claim` is all that it depends on.

    Raises:
        FolderError: the disk is full, or the folder is not writable.
    """
    tensors = {name: one for name, one in cut.model.state_dict().items() if isinstance(one, Tensor)}
    state = {
        "claim": claim,
        "choice": _CHOICE.dump_python(cut.choice, mode="json"),
        "actions": [one.model_dump(mode="json") for one in cut.actions],
        "notes": cut.notes,
    }
    save_checkpoint(folder / CUT, tensors, state)


def load_cut(folder: Path, model: nn.Module, example: Batch, claim: dict[str, Any]) -> CompressedModel | None:
    """What `keep_cut` wrote for this network and goal; None where there is nothing.

    Raises:
        UsageError: it was made for another network, goal or data, or with other settings.
        FolderError: it is damaged.
    """
    if not (folder / CUT).exists():
        return None
    tensors, state = load_checkpoint(folder / CUT)
    check_fingerprint(
        state.get("claim"),
        claim,
        message=f"'{folder / CUT}' was made for another network, goal or data, or with other settings",
        hint="Repeat that run, or give another folder.",
        error=UsageError,
    )
    with refusing(FolderError, f"'{folder / CUT}' is damaged", "Choose a new folder."):
        return _rebuilt(model, example, tensors, state)


def _rebuilt(model: nn.Module, example: Batch, tensors: dict[str, Tensor], state: dict[str, Any]) -> CompressedModel:
    choice = _CHOICE.validate_python(state["choice"])
    actions = _ACTIONS.validate_python(state["actions"])
    anatomy = analyze(copied(model).eval(), example)
    replace_spans_(anatomy, [one for one in actions if isinstance(one, Replace)])
    remove_blocks_(anatomy, [one for one in actions if isinstance(one, Remove)])
    beside = {name: one for name, one in anatomy.model.state_dict().items() if not isinstance(one, Tensor)}
    with torch.no_grad():
        anatomy.model.load_state_dict({**beside, **tensors})  # what a module keeps besides tensors is not on the disk
    return CompressedModel(anatomy.model.eval(), choice, list(actions), list(state.get("notes", [])))
