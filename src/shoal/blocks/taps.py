"""Look into the additions of a running network: see, or change, the branch that is about to be added.

Blocks are watched by module hooks, additions inside them by a `TorchFunctionMode` that counts them: the n-th addition
of a block is the one the chain calls by that number. So a branch can be read or replaced in any code, functional too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.blocks.chain import Block
from shoal.blocks.operations import plain_name

# Called with (block path, number of the unit in the block, stream, branch); returns the branch to add instead, or None.
Tap = Callable[[str, int, Tensor, Tensor], Tensor | None]


@contextmanager
def tapped(model: nn.Module, blocks: list[Block], tap: Tap) -> Iterator[None]:
    """While the context lasts, `tap` sees every residual addition of `blocks` that runs in `model`."""
    mode = _AdditionMode(tap)
    handles = []
    try:
        for block in blocks:
            module = model.get_submodule(block.path)
            handles.append(module.register_forward_pre_hook(mode.entering(block)))
            handles.append(module.register_forward_hook(mode.leaving))
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _AdditionMode(TorchFunctionMode):
    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self.block: Block | None = None
        self.count = 0

    def entering(self, block: Block) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self.block, self.count = block, 0

        return enter

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self.block = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.block is not None and _is_addition(func, args, kwargs):
            number, self.count = self.count, self.count + 1
            for position, unit in enumerate(self.block.units):
                if unit.addition == number:
                    args, kwargs = self._ask(func, position, unit.stream_first, args, kwargs)
        return func(*args, **kwargs)

    def _ask(self, func: Any, position: int, stream_first: bool, args: Any, kwargs: Any) -> tuple[Any, Any]:
        operands = [*args, *(kwargs[key] for key in ("input", "other") if key in kwargs)]
        stream, branch = operands if stream_first else operands[::-1]
        path = self.block.path if self.block is not None else ""
        instead = self.tap(path, position, stream, branch)
        if instead is None:
            return args, kwargs
        if not stream_first and _in_place(func):  # it writes into its first operand: here the branch itself
            operands[0].copy_(instead)
            return args, kwargs
        place = 1 if stream_first else 0
        if place < len(args):
            return (*args[:place], instead, *args[place + 1 :]), kwargs
        return args, {**kwargs, "other" if stream_first else "input": instead}


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _is_addition(func: Any, args: Any, kwargs: Any) -> bool:
    """The same test as `additions.add_operands`, on live arguments."""
    if plain_name(getattr(func, "__name__", "")) != "add" or kwargs.get("alpha", 1) != 1 or len(args) > 2:
        return False
    operands = [*args, *(value for key, value in kwargs.items() if key in ("other", "input"))]
    return len(operands) == 2 and all(isinstance(one, Tensor) for one in operands)
