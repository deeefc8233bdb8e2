"""Does anybody take what a block returns by another way than its return: from an attribute, a list, through a hook?

In a trace both ways look alike, for it is the same tensor. So the network is run with blocks that return copies of what
they return: whoever still reads, or returns, the tensor that was made inside did not get it from the block's caller.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.batches import Batch, call
from shoal.errors import ModelRaisedError
from shoal.outputs import read_outputs, rebuilt
from shoal.preserve import evaluating


def side_reads(model: nn.Module, paths: Sequence[str], batch: Batch) -> set[str]:
    """The blocks whose returned tensors are read by another way than their return.

    Args:
        model: the network; it is left as it was.
        paths: of the blocks.
        batch: what to run it on.
    """
    watch = _Watch()
    modules = {path: model.get_submodule(path) for path in paths}
    recorded = {path for path, module in modules.items() if module._forward_hooks}  # a framework's, that list outputs
    with evaluating(model), ExitStack() as stack:
        for path, module in modules.items():
            hook = watch.leaving(path)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        try:
            with watch:
                output = call(model, batch)
        except ModelRaisedError:
            return set()
    returned = {watch.owner(tensor) for tensor in read_outputs(output).tensors.values()} - recorded
    return {path for path in watch.read | returned if path is not None}


class _Watch(TorchFunctionMode):
    """Keeps what blocks made, and notes whose is read."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[str, Tensor]] = {}
        self.read: set[str | None] = set()
        self.idle = False

    def owner(self, tensor: Tensor) -> str | None:
        """The block that made the memory of a tensor."""
        known = self.made.get(_memory(tensor))
        return known[0] if known is not None else None

    def leaving(self, path: str) -> Any:
        """A hook that hands on copies."""

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
