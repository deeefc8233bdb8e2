"""In what form a block gives the stream back: alone, or in a tuple beside things that nobody reads.

Code that calls its blocks unpacks what they return (`x = block(x)[0]`), and may ask them for plain attributes; what
stands in for a block has to bear both.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoal.blocks.template import Opaque, TensorRef, tensor_refs


@dataclass(frozen=True)
class OutputFormat:
    """What a block returns, with the stream at `at`: a path of indices through nested tuples and lists.

    Args:
        template: numbers, strings and None around the stream; whatever stands at `at` is not looked at.
        at: () where the stream is returned alone.
    """

    template: Any = None
    at: tuple[int, ...] = ()

    def stream(self, returned: Any) -> Tensor:
        """The stream in what a block of this form returned."""
        for index in self.at:
            returned = returned[index]
        found: Tensor = returned
        return found

    def around(self, stream: Tensor) -> Any:
        """What a block of this form returns for this stream."""
        return _put(self.template, self.at, stream)

    def answering(self, forward: Callable[..., Tensor]) -> Callable[..., Any]:
        """A forward that returns in this form what `forward` returns alone."""
        if not self.at:
            return forward
        return lambda *args, **kwargs: self.around(forward(*args, **kwargs))

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        """As a forward hook of what stands in for a block."""
        return self.around(output)


ALONE = OutputFormat()


def infer_format(output: Any, stream: int, entering: Collection[int] = ()) -> OutputFormat | None:
    """The form of a call's output template, in which value `stream` is the stream.

    None where something is in it that a stand-in cannot give: one of the tensors `entering`, an unknown object, a
    mapping. Tensors made inside become None; that nobody reads them is the caller's premise.
    """
    at = _place(output, stream)
    handed = [value for value in tensor_refs(output) if value in entering and value != stream]
    if at is None or handed or not _is_plain(output):
        return None
    return OutputFormat(_without_tensors(output) if at else None, at)


def install_(model: nn.Module, path: str, module: nn.Module, form: OutputFormat = ALONE) -> None:
    """Put `module`, which returns the stream alone, in the place of a block that returns it in `form`.

    Plain attributes of the block go over to it: the network's own code may ask for them.
    """
    _adopt(module, model.get_submodule(path))
    if form.at:
        module.register_forward_hook(form)
    model.set_submodule(path, module, strict=True)


def copy_format_(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new`, about to take the place of a stand-in, answers in the same form and has the same plain attributes."""
    for hook in old._forward_hooks.values():
        if isinstance(hook, OutputFormat):
            new.register_forward_hook(hook)
    _adopt(new, old)
    return new


def _adopt(module: nn.Module, block: nn.Module) -> None:
    for name, value in vars(block).items():
        if not name.startswith("_") and not hasattr(module, name) and isinstance(value, int | float | str):
            vars(module)[name] = value


def _place(item: Any, stream: int) -> tuple[int, ...] | None:
    if isinstance(item, TensorRef):
        return () if item.value == stream else None
    if isinstance(item, (tuple, list)):
        for index, part in enumerate(item):
            inner = _place(part, stream)
            if inner is not None:
                return (index, *inner)
    return None


def _is_plain(item: Any) -> bool:
    if isinstance(item, (tuple, list)):
        return all(map(_is_plain, item))
    return not isinstance(item, (Opaque, dict))


def _without_tensors(item: Any) -> Any:
    if isinstance(item, (tuple, list)):
        return type(item)(_without_tensors(part) for part in item)
    return None if isinstance(item, TensorRef) else item


def _put(item: Any, at: tuple[int, ...], stream: Tensor) -> Any:
    if not at:
        return stream
    return type(item)(_put(part, at[1:], stream) if index == at[0] else part for index, part in enumerate(item))
