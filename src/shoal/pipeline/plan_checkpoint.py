"""The compressed network on disk before recovery, so that an interrupted recovery resumes with the plan it began with.

Latencies are measured anew in every process, and a plan made from them may come out differently.
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

FILENAME = "cut.safetensors"
# What version 0.1.0 wrote, where no plans contended.
_LEGACY = {"try_plans": 0, "race": None}


_CHOICE: TypeAdapter[RemovalChoice] = TypeAdapter(RemovalChoice)
_ACTIONS: TypeAdapter[list[Remove | Replace]] = TypeAdapter(list[Remove | Replace])


def plan_fingerprint(
    context: CompressContext, latency_from: str | Path | None, race: int, *, refit: bool = False
) -> dict[str, Any]:
    """All that the choice depends on, except latencies.

    Args:
        context: network, goal, samples, settings and damage.
        latency_from: latencies of another device; None for those measured here.
        race: how many plans contend, at most.
        refit: whether a removal is refitted.
    """
    inputs = {
        "network": model_digest(context.model)[:16],
        "goal": context.goal.to_dict(),
        "chosen_on": digest_of(context.chosen_on),
        "judged_on": digest_of(context.judged_on or []),
        "device": str(device_of(context.model)),
        # None is what the runs of an earlier version say of it.
        "settings": {**asdict(context.settings), "latency_batch_sizes": context.settings.latency_batch_sizes or None},
        "latency_from": str(latency_from) if latency_from is not None else None,
        "damage": function_id(context.damage),
        "race": race,
        **({"refit": True} if refit else {}),
    }
    return as_json(inputs)


def save_plan(folder: Path, checkpoint: CompressedModel, fingerprint: dict[str, Any]) -> None:
    """Write it whole, or not at all; `fingerprint` is all that it depends on.

    Raises:
        FolderError: the disk is full, or the folder is not writable.
    """
    tensors = {name: value for name, value in checkpoint.model.state_dict().items() if isinstance(value, Tensor)}
    save_checkpoint(folder / FILENAME, tensors, {"claim": fingerprint, **plan_state(checkpoint)})


def plan_state(checkpoint: CompressedModel) -> dict[str, Any]:
    """All of a changed network but its tensors, as JSON can hold it."""
    return {
        "choice": _CHOICE.dump_python(checkpoint.choice, mode="json"),
        "actions": [action.model_dump(mode="json") for action in checkpoint.actions],
        "notes": checkpoint.notes,
    }


def load_plan(folder: Path, model: nn.Module, example: Batch, fingerprint: dict[str, Any]) -> CompressedModel | None:
    """What `save_plan` wrote for this network and goal; None where there is nothing.

    Raises:
        UsageError: it was made for another network, goal or data, or with other settings.
        FolderError: it is damaged.
    """
    if not (folder / FILENAME).exists():
        return None
    tensors, state = load_checkpoint(folder / FILENAME)
    check_fingerprint(
        state.get("claim"),
        fingerprint,
        message=f"'{folder / FILENAME}' was made for another network, goal or data, or with other settings",
        hint="Repeat that run, or give another folder.",
        legacy=_LEGACY,
        error=UsageError,
    )
    with refusing(FolderError, f"'{folder / FILENAME}' is damaged", "Choose a new folder."):
        return rebuild(model, example, state, tensors)


def rebuild(
    model: nn.Module, example: Batch, state: dict[str, Any], tensors: dict[str, Tensor] | None = None
) -> CompressedModel:
    """The changed network of which `plan_state` is the state.

    Args:
        model: the original; it is left as it was.
        example: an input of it.
        state: what `plan_state` returned.
        tensors: of the changed network, all of them; None: replacements have fresh weights.
    """
    choice = _CHOICE.validate_python(state["choice"])
    actions = _ACTIONS.validate_python(state["actions"])
    graph = analyze(copied(model).eval(), example)
    replace_spans_(graph, [action for action in actions if isinstance(action, Replace)])
    compressed = remove_blocks_(graph, [action for action in actions if isinstance(action, Remove)])
    if tensors is not None:
        extra_state = {name: value for name, value in compressed.state_dict().items() if not isinstance(value, Tensor)}
        with torch.no_grad():
            compressed.load_state_dict({**extra_state, **tensors})  # what a module keeps besides tensors is not there
    return CompressedModel(compressed.eval(), choice, list(actions), list(state.get("notes", [])))
