"""Intercept the residual additions of a running network: see, or replace, the branch that is about to be added.

Blocks are watched by module hooks, additions inside them by a `TorchFunctionMode` that counts them: the n-th addition
of a block is the one the chain calls by that number. So a branch can be read or replaced in any code, functional too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.blocks.additions import sum_operands
from shoal.blocks.graph import Block
from shoal.blocks.operations import bind, in_place, plain_name
from shoal.blocks.template import TensorRef

# Called with (block path, number of the unit in the block, stream, branch); returns the branch to add instead, or None.
BranchCallback = Callable[[str, int, Tensor, Tensor], Tensor | None]

_ArgumentPlace = int | str  # of an argument: a position or a keyword


@contextmanager
def intercept_additions(model: nn.Module, blocks: list[Block], callback: BranchCallback) -> Iterator[None]:
    """Inside this context, `callback` is called for every residual addition of `blocks` that runs in `model`."""
    mode = AdditionInterceptor(callback)
    handles = []
    try:
        for block in blocks:
            module = model.get_submodule(block.path)
            handles.append(module.register_forward_pre_hook(mode.entering(block)))
            handles.append(module.register_forward_hook(mode.leaving, prepend=True))
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


class AdditionInterceptor(TorchFunctionMode):
    """Counts the additions that run in a block and hands those of its units to a callback."""

    def __init__(self, callback: BranchCallback) -> None:
        super().__init__()
        self.callback = callback
        self.block: Block | None = None
        self.count = 0

    def entering(self, block: Block) -> Callable[..., None]:
        """A forward pre-hook for the module of a block."""

        def enter(module: nn.Module, args: Any) -> None:
            self.block, self.count = block, 0

        return enter

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook for the module of a block."""
        self.block = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = _operand_places(func, args, kwargs) if self.block is not None else None
        if self.block is not None and operands is not None:
            number, self.count = self.count, self.count + 1
            for position, unit in enumerate(self.block.units):
                if unit.addition == number:
                    args, kwargs = self._ask(func, position, operands, unit.stream_first, args, kwargs)
        return func(*args, **kwargs)

    def _ask(
        self,
        func: Any,
        position: int,
        operands: tuple[_ArgumentPlace, _ArgumentPlace],
        stream_first: bool,
        args: Any,
        kwargs: Any,
    ) -> tuple[Any, Any]:
        at_stream, at_branch = operands if stream_first else operands[::-1]
        stream, branch = (args[at] if isinstance(at, int) else kwargs[at] for at in (at_stream, at_branch))
        path = self.block.path if self.block is not None else ""
        instead = self.callback(path, position, stream, branch)
        if instead is None:
            return args, kwargs
        if not stream_first and in_place(func):  # it writes into its first operand: here the branch itself
            branch.copy_(instead)
            return args, kwargs
        if isinstance(at_branch, int):
            return (*args[:at_branch], instead, *args[at_branch + 1 :]), kwargs
        return args, {**kwargs, at_branch: instead}


def _operand_places(func: Any, args: Any, kwargs: Any) -> tuple[_ArgumentPlace, _ArgumentPlace] | None:
    """The places of the two operands of a plain addition; the same test as `additions.add_operands`, live."""
    if plain_name(getattr(func, "__name__", "")) != "add":
        return None
    places: list[_ArgumentPlace] = [*range(len(args)), *kwargs]
    numbered = [
        TensorRef(at) if isinstance(item, Tensor) else item for at, item in enumerate([*args, *kwargs.values()])
    ]
    named = dict(zip(kwargs, numbered[len(args) :], strict=True))
    operands = sum_operands(bind(func, tuple(numbered[: len(args)]), named))
    return (places[operands[0]], places[operands[1]]) if operands is not None else None
