"""The ablations of a scan: blocks, branches, single units, branches set to their mean, and every kernel set to zero.

Sources: Wang et al. 2020, arXiv:2009.09938 (kernels set to zero); Veit et al. 2016, arXiv:1605.06431 (blocks deleted).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import Block, BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.blocks.module_replacements import module_replacements
from shoal.blocks.prefix_cache import PrefixCache
from shoal.errors import DataError
from shoal.offloaded import with_tensor
from shoal.plan import Remove

Run = Callable[[PrefixCache], Any]


@dataclass(frozen=True)
class Candidate:
    """One ablation.

    Args:
        key: its name in journals: `block:layer1.0`, `kernel:layer1.0.conv1`.
        path: the block or layer.
        ablation: `block`, `unit:0`, `mean`, `kernel`, or `removal`.
        run: returns the network's output under the ablation, for the mini-batch recorded in a prefix cache.
    """

    key: str
    path: str
    ablation: str
    run: Run


def block_candidates(graph: BlockGraph, means: Mapping[tuple[str, int], Tensor]) -> list[Candidate]:
    """For each residual block: the block removed, each of several units removed alone, every branch set to its mean.

    `branch` (F = 0, the activation after the addition stays) is what removing a block means in Shoal, so it is the same
    run as `block` for a removable block; for other blocks it is a run of its own.

    Args:
        graph: the analysed network.
        means: the mean of each branch over samples, by (block path, unit); blocks without one have no `mean`.
    """
    candidates = []
    for block in graph.chain:
        called_again = block.path and len(graph.trace.calls_of(graph.calls[block.path].module)) > 1
        if not block.path or called_again or not (block.units or block.removable):
            continue
        if block.removable:
            candidates.append(_candidate(block, "block", _without(block.path, graph.shortcut_modules[block.path])))
        else:
            candidates.append(_candidate(block, "branch", _with_branches(block, _zeros())))
        if len(block.units) > 1:
            numbers = range(len(block.units))
            candidates.extend(_candidate(block, f"unit:{k}", _with_branches(block, _zeros(k))) for k in numbers)
        if block.units and all((block.path, number) in means for number in range(len(block.units))):
            candidates.append(_candidate(block, "mean", _with_branches(block, _set_to(block.path, means))))
    return candidates


def removal_candidates(graph: BlockGraph, names: Sequence[str], removed: Sequence[str] = ()) -> list[Candidate]:
    """Each removal of these names (of `plan.Remove`) carried out by swapping modules, as in the compressed network.

    Args:
        graph: the analysed network.
        names: of the removals, each tried alone.
        removed: of earlier removals; a unit is removed together with those that its block has lost already.
    """
    removals = [Remove.named(name) for name in removed]
    candidates = []
    for name in names:
        removal = Remove.named(name)
        same_block = [earlier for earlier in removals if earlier.path == removal.path]
        candidates.append(
            Candidate(
                f"removal:{name}",
                name,
                "removal",
                _swapped(removal.path, module_replacements(graph, [*same_block, removal])),
            )
        )
    return candidates


def _swapped(block: str, modules: Mapping[str, nn.Module]) -> Run:
    def run(prefix: PrefixCache) -> Any:
        forwards = {prefix.model.get_submodule(path): module.forward for path, module in modules.items()}
        return prefix.run_from(prefix.segment_of(block), forwards)

    return run


def _candidate(block: Block, ablation: str, run: Run) -> Candidate:
    return Candidate(f"{ablation}:{block.path}", block.path, ablation, run)


def _without(path: str, shortcut: nn.Module) -> Run:
    return lambda prefix: prefix.run_without(path, shortcut)


def _with_branches(block: Block, replace: Callable[[int, Tensor], Tensor | None]) -> Run:
    def run(prefix: PrefixCache) -> Any:
        with intercept_additions(prefix.model, [block], lambda path, unit, stream, branch: replace(unit, branch)):
            return prefix.run_from(prefix.segment_of(block.path), {})

    return run


def _zeros(only: int | None = None) -> Callable[[int, Tensor], Tensor | None]:
    return lambda unit, branch: torch.zeros_like(branch) if only is None or unit == only else None


def _set_to(path: str, means: Mapping[tuple[str, int], Tensor]) -> Callable[[int, Tensor], Tensor | None]:
    def mean_of(unit: int, branch: Tensor) -> Tensor:
        mean = means[path, unit]
        if mean.shape[1:] != branch.shape[1:]:
            raise DataError(
                f"the branch of '{path}' has shape {tuple(branch.shape[1:])}, and had {tuple(mean.shape[1:])} when its "
                "mean was taken: the loader gives other sizes when it is read again",
                "Use a loader that yields the same sizes each time.",
            )
        return mean.to(branch).expand_as(branch).clone()

    return mean_of


@dataclass(frozen=True)
class KernelLayer:
    """A convolution or linear layer that is called once."""

    path: str
    kind: str
    block: str | None
    in_channels: int
    out_channels: int
    params: int


def kernel_layers(graph: BlockGraph) -> list[KernelLayer]:
    """Every convolution and linear layer of the network in execution order, with stem, projections and head."""
    layers = []
    for call in graph.trace.calls:
        channels = _channels(call.module)
        if channels is None or not call.path or len(graph.trace.calls_of(call.module)) > 1:
            continue
        block = next((path for path in graph.calls if path and call.path.startswith(path + ".")), None)
        # Weight norm keeps what it computes the kernel from in a child.
        params = sum(parameter.numel() for parameter in call.module.parameters())
        layers.append(KernelLayer(call.path, type(call.module).__name__, block, *channels, params))
    return layers


def _channels(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a module that multiplies by a kernel called weight; None for any other."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):  # GPT-2's linear layer
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def layer_candidates(graph: BlockGraph, layers: list[KernelLayer]) -> list[Candidate]:
    """Every layer with its kernel set to zero (a bias stays), all else as it was."""
    return [Candidate(f"kernel:{layer.path}", layer.path, "kernel", _without_kernel(layer.path)) for layer in layers]


def _without_kernel(path: str) -> Run:
    def run(prefix: PrefixCache) -> Any:
        module: Any = prefix.model.get_submodule(path)
        zeros = torch.zeros_like(module.weight, device="cpu" if module.weight.is_meta else None)
        with with_tensor(module, "weight", zeros):
            return prefix.run_from(prefix.segment_of(path), {})

    return run
