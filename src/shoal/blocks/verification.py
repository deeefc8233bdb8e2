"""Is the shortcut of a block right, and the network without the block? The network itself is asked, on other inputs.

A trace shows one input. A slice of it may hold that input's sizes or values as plain numbers; and what a block passes
on outside its output (an attribute, a list, through a hook) goes with it, whoever needs it. So the blocks run once
more with zeros in the place of their branches, as their own code has it, on inputs of other values, numbers of samples
and sizes: each shortcut must return the same, and so must the network without them.

Who takes the output of a block by another way than its return? In a trace both look alike, since it is the same
tensor. So the network is run with blocks that return copies: whoever still reads, or returns, the original tensor did
not get it from the block's caller.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.batches import Batch, call, logits_of
from shoal.blocks.additions import post_addition_norms
from shoal.blocks.control_flow import seeded
from shoal.blocks.graph import BlockGraph, without_removable
from shoal.blocks.hooks import has_forward_hooks
from shoal.blocks.input_variants import more_samples, other_values, resized, scaled
from shoal.blocks.interception import intercept_additions
from shoal.blocks.prefix_cache import same_tensors
from shoal.blocks.shortcut_modules import extract_shortcut
from shoal.blocks.sign_analysis import non_negative_values
from shoal.blocks.symbolic_sizes import following_sizes
from shoal.blocks.trace import Trace, trace_run
from shoal.errors import ModelRaisedError, SurgeryError, TraceError
from shoal.offloaded import is_offloaded
from shoal.outputs import mismatch, read_outputs, rebuilt
from shoal.preserve import copied_arguments, evaluating, swapped

_SAMPLES = 2

_READ_ELSEWHERE = (
    "what it returns is also taken by another way (an attribute, a list, a hook), which would be empty or stale "
    "without it: take it from the module around the block instead"
)

_READ_BY_HOOK = (
    "the network reads what a forward hook on it keeps: register the hook on a module that stays instead (as a forward "
    "pre-hook of the next one it sees the same tensor)"
)


def verified(graph: BlockGraph, example: Batch, *, drew: bool) -> BlockGraph:
    """The graph with those blocks marked as not removable without which the network is not right.

    Args:
        graph: of the network.
        example: the traced input.
        drew: whether the network draws random numbers as it runs: then no two runs can be compared.
    """
    single, inputs = example.take(1), example.take(_SAMPLES)
    graph = replace(graph, example=single)
    checks = [] if drew else _check_inputs(graph, inputs)
    before = graph
    wrong = {path for look in checks for path in look.wrong}
    if wrong:
        graph = _with_symbolic_sizes(graph, sorted(wrong), [look.batch for look in checks])
        graph = without_removable(graph, _frozen_reasons(_recheck(graph, checks)))
    graph = _runnable(graph, single)
    taken = side_reads(graph.model, list(graph.shortcut_modules), single)
    graph = without_removable(graph, {path: _read_elsewhere_reason(graph, path) for path in taken})
    return _without_needed_elsewhere(graph, checks if graph is before else _recheck(graph, checks))


def _read_elsewhere_reason(graph: BlockGraph, path: str) -> str:
    return _READ_BY_HOOK if has_forward_hooks(graph.model.get_submodule(path)) else _READ_ELSEWHERE


def _runnable(graph: BlockGraph, example: Batch) -> BlockGraph:
    failures = _failures(graph, graph.shortcut_modules, example)
    failures_without_norms = _failures(graph, graph.shortcuts_without_norms, example)
    reasons = {path: f"the network does not run without it: {failure}" for path, failure in failures.items()}
    if failures_without_norms:
        shortcuts_without_norms = {
            path: module for path, module in graph.shortcuts_without_norms.items() if path not in failures_without_norms
        }
        graph = replace(graph, shortcuts_without_norms=shortcuts_without_norms)
    return without_removable(graph, reasons)


def _failures(graph: BlockGraph, shortcut_modules: dict[str, nn.Module], example: Batch) -> dict[str, str]:
    """The blocks without which the network does not run, with what it raised.

    A container may read more of a block than its result (torch's TransformerEncoder inspects its first layer). One
    run without all of them mostly suffices; only if it fails is each tried alone.
    """
    if not shortcut_modules or _runs_with(graph, shortcut_modules, example) is None:
        return {}
    tried = ((path, _runs_with(graph, {path: shortcut}, example)) for path, shortcut in shortcut_modules.items())
    return {path: failure for path, failure in tried if failure is not None}


def _runs_with(graph: BlockGraph, shortcut_modules: dict[str, nn.Module], example: Batch) -> str | None:
    """None if the network runs with these shortcuts in place of their blocks, else what it raised."""
    with evaluating(graph.model), swapped(graph.model, shortcut_modules):
        try:
            call(graph.model, example)
        except ModelRaisedError as error:
            return str(error.__cause__)
    return None


def _comparable(graph: BlockGraph) -> list[str]:
    """The removable blocks with additions; blocks that an adapter declares have no branch to set to zero."""
    return [path for path in graph.shortcut_modules if graph.additions[path]]


@dataclass(frozen=True)
class InputCheck:
    """One input: the blocks whose shortcuts return something else, and whether the network is right without all."""

    batch: Batch
    wrong: list[str] = field(default_factory=list)
    answered: bool = True


def _check_inputs(graph: BlockGraph, example: Batch) -> list[InputCheck]:
    """Check other values, numbers of samples and sizes, as far as the network accepts them."""
    if not _comparable(graph):
        return []
    values = other_values(example)
    groups = [[more_samples(values), values], [example.take(1)]]
    if graph.trace.data_escapes:
        groups += [[scaled(example, -1.0)], [scaled(example, 0.05)]]
    # Each run of an offloaded network reads all weights from the disk.
    sizes = () if is_offloaded(graph.model) else resized(example)
    return [check for group in chain(groups, sizes) if (check := _check_first(graph, group)) is not None]


def _recheck(graph: BlockGraph, checks: Sequence[InputCheck]) -> list[InputCheck]:
    paths = _comparable(graph)
    return [check for before in checks if paths and (check := _check_input(graph, paths, before.batch)) is not None]


def _frozen_reasons(checks: Sequence[InputCheck]) -> dict[str, str]:
    return {path: _frozen_reason(check) for check in reversed(checks) for path in check.wrong}


def _without_needed_elsewhere(graph: BlockGraph, checks: Sequence[InputCheck]) -> BlockGraph:
    """The graph with those blocks marked as not removable without which the network returns something wrong."""
    for check in checks:
        # A number that left the graph in a block may come back in a later one, which is missing too where all are.
        paths = _comparable(graph) if not check.answered else _paths_with_escapes(graph)
        graph = without_removable(graph, _needed_elsewhere(graph, paths, check.batch))
    return graph


def _paths_with_escapes(graph: BlockGraph) -> list[str]:
    where = [escape.partition(" in ")[2].strip("'") for escape in graph.trace.data_escapes]
    return [path for path in _comparable(graph) if any(f"{place}.".startswith(f"{path}.") for place in where)]


def _frozen_reason(check: InputCheck) -> str:
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in check.batch.tensors)
    return (
        "its shortcut is computed with numbers that depend on the sizes or the values of the input: what is known of "
        f"it is wrong for an input of shape {shapes}"
    )


def _check_first(graph: BlockGraph, group: Sequence[Batch]) -> InputCheck | None:
    """Check the first input of a group that the network accepts."""
    return next(
        (check for batch in group if (check := _check_input(graph, _comparable(graph), batch)) is not None), None
    )


def _check_input(graph: BlockGraph, paths: Sequence[str], batch: Batch) -> InputCheck | None:
    """Check one input; None where the network does not accept it, or draws random numbers."""
    wrong: list[str] = []
    cut = _output_without_blocks(graph, paths, batch)  # first: what modules have kept is still that of another input
    answer = _output_with_zeros(graph, paths, batch, wrong)
    if answer is None:
        return None
    return InputCheck(batch, wrong, answered=cut is not None and _same_output(answer, cut))


def _output_with_zeros(graph: BlockGraph, paths: Sequence[str], batch: Batch, wrong: list[str] | None = None) -> Any:
    """The network's output with the branches of these blocks zeroed; None where it raises or draws random numbers."""
    blocks = [graph.chain[path] for path in paths]
    with evaluating(graph.model), seeded(0), ExitStack() as stack:
        seed = torch.get_rng_state()
        zeros = ZeroBranches()
        stack.enter_context(intercept_additions(graph.model, blocks, zeros))
        if wrong is not None:
            stack.enter_context(_comparing(graph, paths, wrong))
        try:
            answer = call(graph.model, batch)
        except ModelRaisedError:
            return None
        return answer if torch.equal(seed, torch.get_rng_state()) and not zeros.stretched else None


class ZeroBranches:
    """Replaces branches by zeros; `stretched` where a stream of size 1 was broadcast to its branch's shape.

    Odd sizes may be rounded down on one side and up on the other; that such a sum works at all is an accident.
    """

    def __init__(self) -> None:
        self.stretched = False

    def __call__(self, path: str, unit: int, stream: Tensor, branch: Tensor) -> Tensor:
        """The callback of `intercept_additions`."""
        self.stretched |= torch.broadcast_shapes(stream.shape, branch.shape) != stream.shape
        return torch.zeros_like(branch)


def _output_without_blocks(graph: BlockGraph, paths: Iterable[str], batch: Batch) -> Any:
    """The network's output with shortcuts in place of these blocks; None where it raises."""
    shortcut_modules = {path: graph.shortcut_modules[path] for path in paths}
    with evaluating(graph.model), swapped(graph.model, shortcut_modules), suppress(ModelRaisedError):
        return call(graph.model, batch)
    return None


def _same_output(whole: Any, cut: Any) -> bool:
    first, second = read_outputs(whole), read_outputs(cut)
    if mismatch(first, second) is not None:  # a network may list what each of its blocks returned
        return same_tensors([logits_of(whole)], [logits_of(cut)], exact=False)
    return same_tensors([*first.tensors.values()], [*second.tensors.values()], exact=False)


def _needed_elsewhere(graph: BlockGraph, paths: Sequence[str], batch: Batch) -> dict[str, str]:
    """The blocks whose removal alone changes the output, compared with zeros for their branches."""
    reasons = {}
    for path in paths:
        if graph.example is not None:
            _output_with_zeros(graph, [], graph.example)
        cut, answer = _output_without_blocks(graph, [path], batch), _output_with_zeros(graph, [path], batch)
        if answer is None or (cut is not None and _same_output(answer, cut)):
            continue
        reasons[path] = "the network needs what it passes on beside its output (an attribute, a hook, a list): " + (
            "without it, it does not run on other input" if cut is None else "without it, its answers are wrong"
        )
    return reasons


@contextmanager
def _comparing(graph: BlockGraph, paths: Sequence[str], wrong: list[str]) -> Iterator[None]:
    """Inside this context, blocks whose shortcuts return something else than they do are added to `wrong`."""
    with ExitStack() as stack:
        for path in paths:
            entering, leaving = _comparison(graph.shortcut_modules[path], partial(wrong.append, path))
            module = graph.model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(entering, with_kwargs=True).remove)
            first = has_forward_hooks(module)  # they act on what the shortcut returns, too
            stack.callback(module.register_forward_hook(leaving, with_kwargs=True, prepend=first).remove)
        yield


def _comparison(shortcut: nn.Module, note: Callable[[], object]) -> tuple[Callable[..., None], Callable[..., None]]:
    """A forward pre-hook and a forward hook that compare a block with its shortcut."""
    entered: list[Any] = []
    # Hooks of the user act around both: before the block is entered, and after this comparison.
    forward = shortcut.forward if has_forward_hooks(shortcut) else shortcut

    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        entered[:] = copied_arguments((args, kwargs))  # a block may write into what it is given

    def leaving(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        try:
            result = forward(*entered[0], **entered[1])
        except Exception:  # noqa: BLE001 - whatever it is, the block itself did not raise
            note()
        else:
            if not _agrees(output, result):
                note()

    return entering, leaving


def _agrees(output: Any, result: Any) -> bool:
    """Whether a shortcut returned the same as its block, except for what nobody reads (None)."""
    if result is None:
        return True
    if isinstance(result, Tensor):
        return isinstance(output, Tensor) and same_tensors([result], [output], exact=False)
    if isinstance(result, Mapping):
        return isinstance(output, Mapping) and all(_agrees(output.get(key), part) for key, part in result.items())
    if isinstance(result, (tuple, list)):
        return isinstance(output, (tuple, list)) and all(map(_agrees, output, result))
    return True


def _with_symbolic_sizes(graph: BlockGraph, paths: Sequence[str], inputs: Sequence[Batch]) -> BlockGraph:
    """The graph with the numbers in the shortcuts of these blocks written as sizes of their inputs."""
    runs: list[Trace] = []
    for batch in inputs:
        with suppress(ModelRaisedError, TraceError):
            runs.append(trace_run(graph.model, batch))
    run = following_sizes(graph.trace, [graph.calls[path] for path in paths], runs)
    signs = non_negative_values(run)
    shortcut_modules, shortcuts_without_norms = dict(graph.shortcut_modules), dict(graph.shortcuts_without_norms)
    for path in paths:
        block_call, additions = run.calls[graph.calls[path].index], list(graph.additions[path])
        with suppress(SurgeryError):
            shortcut_modules[path], _ = extract_shortcut(run, block_call, additions, non_negative=signs)
            if shortcuts_without_norms.pop(path, None) is not None:
                norms = post_addition_norms(run, block_call, additions)
                shortcuts_without_norms[path], _ = extract_shortcut(
                    run, block_call, additions, non_negative=signs, norms=norms
                )
    return replace(graph, shortcut_modules=shortcut_modules, shortcuts_without_norms=shortcuts_without_norms)


def side_reads(model: nn.Module, paths: Sequence[str], batch: Batch) -> set[str]:
    """The blocks whose returned tensors are read in another way than from their return.

    Args:
        model: the network; it is left as it was.
        paths: of the blocks.
        batch: what to run it on.
    """
    watch = SideReadWatch()
    modules = {path: model.get_submodule(path) for path in paths}
    # A framework's hooks list outputs. What a user's hook takes counts: the network is seen to need it.
    recorded = {path for path, module in modules.items() if module._forward_hooks and not has_forward_hooks(module)}
    with evaluating(model), ExitStack() as stack:
        for path, module in modules.items():
            handle = module.register_forward_hook(watch.leaving(path), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            with watch:
                output = call(model, batch)
        except ModelRaisedError:
            return set()
    returned = {watch.owner(tensor) for tensor in read_outputs(output).tensors.values()} - recorded
    return {path for path in watch.read | returned if path is not None}


class SideReadWatch(TorchFunctionMode):
    """Remembers the tensors that blocks made, and which blocks' tensors are read."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[str, Tensor]] = {}
        self.read: set[str | None] = set()
        self.idle = False

    def owner(self, tensor: Tensor) -> str | None:
        """The block that allocated the memory of a tensor."""
        made = self.made.get(_memory(tensor))
        return made[0] if made is not None else None

    def leaving(self, path: str) -> Any:
        """A forward hook that returns copies."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            self.idle = True
            try:
                passed = {_memory(tensor) for tensor in _tensors((args, kwargs))}

                def copy(tensor: Tensor) -> Tensor:
                    # What was written into in place, or handed through, is the caller's own too.
                    if _memory(tensor) in passed:
                        return tensor
                    self.made[_memory(tensor)] = (path, tensor)
                    return tensor.clone()

                return rebuilt(output, copy)
            finally:
                self.idle = False

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.idle and getattr(func, "__name__", "") != "__get__":
            self.read |= {self.owner(tensor) for tensor in _tensors((args, kwargs or {}))}
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without one
        return id(tensor)


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from _tensors(part)
