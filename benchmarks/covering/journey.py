"""The full way of one network: trace, scan, remove, replace, save in one process; load in another."""

import copy
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from covering.made import Row, Way, batch_of, made, way_of
from covering.spans import chosen_span, why_none
from shoal.batches import Batch, call
from shoal.blocks import Block, BlockGraph, analyze
from shoal.blocks.module_replacements import removable_units, unit_replacements
from shoal.errors import ShoalError
from shoal.pipeline import RemoveBlocks, compress
from shoal.plan import Plan, Remove, Replace
from shoal.preserve import evaluating
from shoal.replace import ReplacementSpec, fit_all
from shoal.scanning import removal_sweep
from shoal.store import export_onnx, load, save
from shoal.surgery import input_specs, remove_blocks, remove_blocks_, signature_of
from shoal.surgery.replace import replace_spans_
from shoal.tasks import OutputRequest

STEPS = ("trace", "scan", "remove", "unit", "replace", "save", "load", "onnx")
OK = "ok"
_OUTPUTS = "outputs.safetensors"
_ROWS_PER_UNKNOWN = 4


@dataclass
class Cell:
    """What one step came to: `ok` is None where it was not tried."""

    ok: bool | None
    said: str = ""


@dataclass
class Travel:
    """A network on its way, and what each step came to."""

    row: Row
    folder: Path
    cells: dict[str, Cell] = field(default_factory=dict)
    way: Way = field(default_factory=lambda: Way(None, None))
    task: str | None = None

    def step(self, name: str, do: Callable[[], str]) -> bool:
        """Do one step and note it; False where it failed."""
        try:
            self.cells[name] = Cell(True, do())
        except Exception as error:  # noqa: BLE001 - whatever a network raises is the finding
            self.cells[name] = Cell(False, _said(error))
        return self.cells[name].ok is True

    def write(self) -> None:
        """Keep it, so that a process that is ended leaves what it found."""
        document = {
            "key": self.row.key,
            "way": asdict(self.way),
            "task": self.task,
            "cells": {key: asdict(one) for key, one in self.cells.items()},
        }
        (self.folder / "row.json").write_text(json.dumps(document, indent=1))


class NotPossibleError(Exception):
    """A step that this network does not bear, with the reason."""


def travel(row: Row, folder: Path, onnx: bool) -> None:
    """Everything but the load; what was found stands in `folder`."""
    torch.set_num_threads(1)
    one = Travel(row, folder)
    held: dict[str, Any] = {}

    def begin() -> str:
        one.way = way_of(row)
        held["model"], held["batch"] = made(row, one.way, 0), batch_of(row, one.way)
        one.task = _task(held["model"], held["batch"], row)
        held["anatomy"] = analyze(held["model"], held["batch"])
        return _traced(held["anatomy"], row)

    going = one.step("trace", begin)
    one.write()
    if "anatomy" in held and not any(block.units for block in held["anatomy"].chain):
        one.cells["trace"].ok = None
        one.step("refuse", lambda: _refused(held["model"], held["batch"]))
        one.write()
        return
    if not going:
        return
    anatomy, batch = held["anatomy"], held["batch"]
    one.step("scan", lambda: _scanned(anatomy, batch, row))
    one.write()
    one.step("remove", lambda: _removed(anatomy, batch, row))
    one.write()
    _try_unit(one, anatomy, batch)
    one.write()
    actions: list[Remove | Replace] = []
    modules: dict[str, nn.Module] = {}
    one.step("replace", lambda: _replaced(anatomy, batch, row, actions, modules))
    one.write()
    taken = {path for action in actions if isinstance(action, Replace) for path in action.paths}
    actions += [Remove(path=path) for path in _middle(anatomy, row, taken)[:1]]
    taken |= {action.path for action in actions if isinstance(action, Remove)}
    if one.cells["unit"].ok:
        actions += _unit(anatomy, _middle(anatomy, row, taken))[:1]
    one.step("save", lambda: _saved(one, anatomy, batch, actions, modules))
    one.write()
    if onnx:
        one.cells["onnx"] = _exported(anatomy, batch, row, folder)
        one.write()


def _task(model: nn.Module, batch: Batch, row: Row) -> str | None:
    """What the network is for, by its class; networks of images without another task are asked with classes."""
    classes = torch.zeros(batch.size, dtype=torch.int64) if row.source in ("torchvision", "timm") else None
    return OutputRequest().choose(model, replace(batch, target=classes)).name


def arrive(row: Row, folder: Path) -> None:
    """Load what `travel` saved, from a factory with other random weights; the outputs must be the same bits."""
    torch.set_num_threads(1)
    document = json.loads((folder / "row.json").read_text())
    one = Travel(row, folder, {key: Cell(**cell) for key, cell in document["cells"].items()}, Way(**document["way"]))
    one.task = document.get("task")
    one.step("load", lambda: _loaded(one))
    one.write()


def _traced(anatomy: BlockGraph, row: Row) -> str:
    own = _own(anatomy, row)
    removable = [block for block in own if block.removable]
    if not removable:
        reasons = list(dict.fromkeys(block.reason for block in own if block.reason))
        raise NotPossibleError("; ".join([anatomy.chain.note or "none removable", *reasons[:2]]))
    units = max(len(block.units) for block in own)
    return f"{len(own)} blocks, {len(removable)} removable" + (f", up to {units} units" if units > 1 else "")


def _own(anatomy: BlockGraph, row: Row) -> list[Block]:
    return [block for block in anatomy.chain if block.path.startswith(row.inside)]


def _middle(anatomy: BlockGraph, row: Row, without: set[str]) -> list[str]:
    """The removable blocks that are not taken, from the middle outwards."""
    paths = [block.path for block in _own(anatomy, row) if block.removable and block.path not in without]
    return sorted(paths, key=lambda path: abs(paths.index(path) - len(paths) // 2))


def _scanned(anatomy: BlockGraph, batch: Batch, row: Row) -> str:
    paths = _middle(anatomy, row, set())[:2]
    worths = removal_sweep(anatomy, [batch], paths)
    return ", ".join(f"{one.path} {one.damage:.2g}" for one in worths)


def _removed(anatomy: BlockGraph, batch: Batch, row: Row) -> str:
    path = _middle(anatomy, row, set())[0]
    remove_blocks(anatomy.model, batch, [path])
    return path


def _try_unit(one: Travel, anatomy: BlockGraph, batch: Batch) -> None:
    several = [block.path for block in _own(anatomy, one.row) if len(block.units) > 1]
    if not several:
        one.cells["unit"] = Cell(None, "one unit a block")
        return
    middle = sorted(several, key=lambda path: abs(several.index(path) - len(several) // 2))

    def cut() -> str:
        found = _unit(anatomy, middle)
        if not found:
            unit_replacements(anatomy, middle[0], [0])  # says why
        remove_blocks(anatomy.model, batch, found[:1])
        return found[0].name

    one.step("unit", cut)


def _unit(anatomy: BlockGraph, paths: list[str]) -> list[Remove]:
    """The units of the first of these blocks that has any to be taken out alone, the last of them first."""
    for path in paths:
        units = removable_units(anatomy, anatomy.chain[path])
        if units:
            return [Remove(path=path, unit=unit) for unit in reversed(units)]
    return []


def _refused(model: nn.Module, batch: Batch) -> str:
    """What is said when blocks of a network without any are to be removed."""
    try:
        compress(model, [batch], RemoveBlocks(1))
    except ShoalError as error:
        return error.message
    raise NotPossibleError("nothing was refused")


def _replaced(
    anatomy: BlockGraph, batch: Batch, row: Row, actions: list[Remove | Replace], modules: dict[str, nn.Module]
) -> str:
    span = chosen_span(anatomy, row.inside)
    if span is None:
        raise NotPossibleError(why_none(anatomy, row.inside))
    fitted = fit_all(anatomy, [batch], [ReplacementSpec(span, "linear")], rows_per_unknown=_ROWS_PER_UNKNOWN)[0]
    action = Replace(paths=list(span.paths), stand_in=fitted.stand_in)
    changed = replace_spans_(
        analyze(copy.deepcopy(anatomy.model), batch), [action], {span.paths[0]: copy.deepcopy(fitted.module)}
    )
    with evaluating(changed):
        call(changed, batch)
    actions.append(action)
    modules[span.paths[0]] = fitted.module
    return span.name + ("" if span.keeps_shape else ", across a change of stage")


def _saved(
    one: Travel,
    anatomy: BlockGraph,
    batch: Batch,
    actions: list[Remove | Replace],
    modules: dict[str, nn.Module],
) -> str:
    plan = Plan(inputs=input_specs(batch), network=signature_of(anatomy.model, anatomy.chain), actions=list(actions))
    own = analyze(copy.deepcopy(anatomy.model), batch)
    replace_spans_(own, plan.replaced, modules)
    cut = remove_blocks_(own, plan.removals).eval()
    save(one.folder, cut, plan)
    outputs = _outputs(cut, batch)
    save_file(outputs, str(one.folder / _OUTPUTS))
    return f"{len(plan.removals)} removed, {len(plan.replaced)} replaced"


def _loaded(one: Travel) -> str:
    network = load(one.folder, model=lambda: made(one.row, one.way, 1))
    found, expected = _outputs(network, batch_of(one.row, one.way)), load_file(str(one.folder / _OUTPUTS))
    if sorted(found) != sorted(expected):
        raise NotPossibleError(f"{len(found)} outputs, expected {len(expected)}")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape or not torch.equal(tensor, found[name]):
            raise NotPossibleError(f"output {name} is not bitwise the same")
    return f"{len(expected)} outputs, bitwise the same"


def _outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    with evaluating(model):
        found = list(_tensors(call(model, batch)))
    return {str(number): tensor.detach().contiguous().clone() for number, tensor in enumerate(found)}


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for part in item.values():
            yield from _tensors(part)
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _tensors(part)


def _exported(anatomy: BlockGraph, batch: Batch, row: Row, folder: Path) -> Cell:
    """ONNX counts only where the untouched original exports."""
    cut = remove_blocks(anatomy.model, batch, _middle(anatomy, row, set())[:1])
    said = [_onnx(model, batch, folder / "model.onnx") for model in (anatomy.model, cut)]
    words = " / ".join(f"{name} {one or OK}" for name, one in zip(("original", "shortened"), said, strict=True))
    return Cell(None if said[0] else said[1] is None, words)


def _onnx(model: nn.Module, batch: Batch, path: Path) -> str | None:
    try:
        export_onnx(model, batch, path)
    except Exception as error:  # noqa: BLE001 - exporters raise many types
        return _said(error)
    finally:
        path.unlink(missing_ok=True)
    return None


def _said(error: Exception) -> str:
    if isinstance(error, NotPossibleError):
        return str(error)
    if isinstance(error, ShoalError):
        return error.message
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}".splitlines()[0]
