"""Put gates on a network, find them again, take them off: hooks only, no parameter, no buffer, no change of a class."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoal.batches import as_batch
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.additions import Addition
from shoal.blocks.graph import Block
from shoal.blocks.interception import intercept_additions
from shoal.blocks.template import TensorRef
from shoal.blocks.trace import ModuleCall, Trace
from shoal.epsilon.gate import Gate, checked_epsilon
from shoal.errors import SurgeryError, UsageError
from shoal.intake import check_network

# A shut gate multiplies with this attribute of the module it sits on, so that a trace finds where the zero is from.
_ZERO = "_shut_by_epsilon"


class GateHook:
    """The forward hook of one gate on the module that ends a branch; a copy of the network gets a copy of it."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The gated output."""
        return self.gate(output)


class AdditionHooks:
    """The gates of branches that no module ends: while the network runs, its additions are watched.

    A pair of hooks on the whole network, the second of which runs also where the forward raises.
    """

    def __init__(self, blocks: Sequence[Block], gates: Sequence[Gate]) -> None:
        self.blocks, self.gates = list(blocks), {(gate.block, gate.unit): gate for gate in gates}
        self.running: list[ExitStack] = []

    def begin(self, module: nn.Module, args: Any) -> None:
        """Watch the additions of this forward."""
        present = [block for block in self.blocks if self._is_there(module, block)]
        stack = ExitStack()
        stack.enter_context(intercept_additions(module, present, self._gate))
        self.running.append(stack)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Stop watching."""
        if self.running:
            self.running.pop().close()

    def _gate(self, path: str, unit: int, stream: Tensor, branch: Tensor) -> Tensor | None:
        gate = self.gates.get((path, unit))
        return gate(branch) if gate is not None else None

    @staticmethod
    def _is_there(module: nn.Module, block: Block) -> bool:
        """Whether the block was not taken out since."""
        try:
            return type(module.get_submodule(block.path)).__name__ == block.kind
        except AttributeError:
            return False


def epsilonize_(model: nn.Module, example: object, epsilon: float) -> list[Gate]:
    """Put a gate in front of every residual addition of `model`, in place, so that training makes blocks vanish.

    A gate adds its branch only if any response of the mini-batch exceeds epsilon in magnitude (see `gate`). Gates are
    forward hooks: the state dict stays as it is, copies get gates of their own, `remove_gates_` takes them off.

    For a block to vanish for good, weight decay must reach what ends its branch: the last convolution or linear map, or
    the scale and shift of the normalisation (or LayerScale) behind it; see `decayed_parameters`.

    Args:
        model: any network that `shoal.trace` understands.
        example: a mini-batch as the model takes it.
        epsilon: from 0; 0 leaves every gate open and only measures the responses.

    Returns:
        The gates, in the order they run.

    Raises:
        UsageError: epsilon is negative or NaN, or the network has gates already.
        SurgeryError: no residual block that could be taken out; says why.
        ModelRaisedError, TraceError, NonFiniteError: see `trace`.
    """
    check_network(model)
    checked_epsilon(epsilon)
    if gates_of(model):
        raise UsageError("the network has gates already", "Take them off first: remove_gates_(model).")
    graph = analyze(model, as_batch(example))
    if graph.model not in set(model.modules()):
        raise UsageError(
            "modules of the network are compiled (torch.compile), and gates go into the modules themselves",
            "Give the network as it was before they were compiled, and compile it afterwards.",
        )
    return attach_gates_(graph, epsilon)


def attach_gates_(graph: BlockGraph, epsilon: float) -> list[Gate]:
    """`epsilonize_` for a network that was traced already."""
    sites = sites_of(graph)
    if not sites:
        raise SurgeryError(
            f"no block of this network can be gated: {graph.chain.note or 'none can be removed'}",
            "`shoal trace` lists the blocks and the reasons.",
        )
    gates = [Gate(site.block, site.unit, epsilon) for site in sites]
    bare = []
    for site, gate in zip(sites, gates, strict=True):
        holder = graph.model.get_submodule(site.module if site.module is not None else site.block)
        setattr(holder, _ZERO, gate.nothing)
        if site.module is not None:
            holder.register_forward_hook(GateHook(gate))
        else:
            bare.append(gate)
    if bare:
        paths = {gate.block for gate in bare}
        hooks = AdditionHooks([block for block in graph.chain if block.path in paths], bare)
        graph.model.register_forward_pre_hook(hooks.begin)
        graph.model.register_forward_hook(hooks.end, always_call=True)
    return gates


def gates_of(model: nn.Module) -> list[Gate]:
    """The gates on a network, those on modules first, each kind in the order they run."""
    on_modules = [hook.gate for _, hook in _hooks(model) if isinstance(hook, GateHook)]
    bare = {id(hooks): hooks for _, hook in _hooks(model) if (hooks := _addition_hooks(hook)) is not None}
    return [*on_modules, *(gate for hooks in bare.values() for gate in hooks.gates.values())]


def watches_additions(model: nn.Module) -> bool:
    """Whether some gates sit on additions and not on modules; these do not go through torch.compile."""
    return any(_addition_hooks(hook) is not None for _, hook in _hooks(model))


def remove_gates_(model: nn.Module) -> nn.Module:
    """Take every gate off: the network adds all of its branches again.

    Raises:
        SurgeryError: a gate is shut; without it the branch would come back.
    """
    shut = sorted({gate.block for gate in gates_of(model) if gate.mode == "shut"})
    if shut:
        raise SurgeryError(
            f"the gate of '{shut[0]}' is frozen shut; without it the block would come back",
            "Take the block out (remove_blocks), or open the gate first: gate.mode = 'open'.",
        )
    drop_gates_(model, [])
    return model


def drop_gates_(model: nn.Module, kept: Collection[str]) -> None:
    """Take off the gates of all blocks but those in `kept`, whatever their state."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_done(hook, kept)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        mine = [hook for hook in module._forward_hooks.values() if isinstance(hook, GateHook)]
        if not mine and not kept:
            module.__dict__.pop(_ZERO, None)


def _is_done(hook: object, kept: Collection[str]) -> bool:
    """Whether a hook of ours has no gate left to serve."""
    if isinstance(hook, GateHook):
        return hook.gate.block not in kept
    hooks = _addition_hooks(hook)
    if hooks is None:
        return False
    hooks.gates = {key: gate for key, gate in hooks.gates.items() if gate.block in kept}
    hooks.blocks = [block for block in hooks.blocks if block.path in kept]
    return not hooks.gates


def _addition_hooks(hook: object) -> AdditionHooks | None:
    owner = getattr(hook, "__self__", None)
    return owner if isinstance(owner, AdditionHooks) else None


def _hooks(model: nn.Module) -> Iterator[tuple[nn.Module, object]]:
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield module, hook


@dataclass(frozen=True)
class Site:
    """The place of one gate.

    Args:
        block: path of the block.
        unit: number of the residual addition in the block.
        module: path of the module whose output is the whole branch, or None: then only the addition sees the branch
            (it ends in a product with a parameter, or leaves its last module in a tuple).
    """

    block: str
    unit: int
    module: str | None


def sites_of(graph: BlockGraph) -> list[Site]:
    """One site for every residual addition of every removable block, in the order they run."""
    return [
        Site(block.path, number, _last_module(graph.trace, graph.calls[block.path], addition))
        for block in graph.chain.removable
        for number, addition in enumerate(graph.additions[block.path])
    ]


def _last_module(trace: Trace, block: ModuleCall, addition: Addition) -> str | None:
    """The outermost module inside the block whose output is the branch and nothing else."""
    if trace.readers.get(addition.branch, []) != [addition.op]:
        return None  # somebody else reads the branch: a gate on the module would change that too
    producer = trace.values[addition.branch].producer
    path = None
    for call in trace.enclosing(trace.ops[producer].call):
        if call.index == block.index or call.holds(addition.op):
            break
        if call.output == TensorRef(addition.branch) and len(trace.calls_of(call.module)) == 1:
            path = call.path
    return path
