"""How a block returns the stream: as a plain tensor, or inside a tuple with values that nobody reads.

The network's code unpacks what its blocks return (`x = block(x)[0]`) and may read plain attributes of them; a
replacement has to support both.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoal.blocks.template import Opaque, TensorRef, tensor_refs


@dataclass(frozen=True)
class OutputFormat:
    """What a block returns.

    Args:
        template: the numbers, strings and None around the stream; the value at `index_path` is ignored.
        index_path: indices through nested tuples and lists that lead to the stream; () for a plain tensor.
    """

    template: Any = None
    index_path: tuple[int, ...] = ()

    def stream(self, output: Any) -> Tensor:
        """The stream in the output of a block."""
        for index in self.index_path:
            output = output[index]
        stream: Tensor = output
        return stream

    def wrap(self, stream: Tensor) -> Any:
        """The output of a block for this stream."""
        return _put(self.template, self.index_path, stream)

    def wrap_forward(self, forward: Callable[..., Tensor]) -> Callable[..., Any]:
        """A forward that returns in this format what `forward` returns as a plain tensor."""
        if not self.index_path:
            return forward
        return lambda *args, **kwargs: self.wrap(forward(*args, **kwargs))

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        """As a forward hook of a replacement."""
        return self.wrap(output)


PLAIN = OutputFormat()


def infer_format(output: Any, stream: int, entering: Collection[int] = ()) -> OutputFormat | None:
    """The format of a call's output template, in which value `stream` is the stream.

    None where it contains something that a replacement cannot return: one of the tensors `entering`, an unknown object,
    a mapping. Tensors made inside become None; the caller has to know that nobody reads them.
    """
    index_path = _index_path(output, stream)
    passed_through = [value for value in tensor_refs(output) if value in entering and value != stream]
    if index_path is None or passed_through or not _is_plain_data(output):
        return None
    return OutputFormat(_without_tensors(output) if index_path else None, index_path)


def install_(model: nn.Module, path: str, module: nn.Module, output_format: OutputFormat = PLAIN) -> None:
    """Replace the block at `path` by `module`, which returns a plain tensor, and make it return `output_format`.

    Plain attributes of the block are copied to it: the network's code may read them.
    """
    copy_plain_attrs_(module, model.get_submodule(path))
    if output_format.index_path:
        module.register_forward_hook(output_format)
    model.set_submodule(path, module, strict=True)


def copy_format_(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new`, made to return the format of `old` and to have its plain attributes, before it takes its place."""
    for hook in old._forward_hooks.values():
        if isinstance(hook, OutputFormat):
            new.register_forward_hook(hook)
    copy_plain_attrs_(new, old)
    return new


def copy_plain_attrs_(module: nn.Module, block: nn.Module) -> None:
    """Give `module` the numbers, flags and strings that are public attributes of `block`."""
    for name, value in vars(block).items():
        if not name.startswith("_") and not hasattr(module, name) and isinstance(value, int | float | str):
            vars(module)[name] = value


def _index_path(item: Any, stream: int) -> tuple[int, ...] | None:
    if isinstance(item, TensorRef):
        return () if item.value == stream else None
    if isinstance(item, (tuple, list)):
        for index, part in enumerate(item):
            inner = _index_path(part, stream)
            if inner is not None:
                return (index, *inner)
    return None


def _is_plain_data(item: Any) -> bool:
    if isinstance(item, (tuple, list)):
        return all(map(_is_plain_data, item))
    return not isinstance(item, (Opaque, dict))


def _without_tensors(item: Any) -> Any:
    if isinstance(item, (tuple, list)):
        return type(item)(_without_tensors(part) for part in item)
    return None if isinstance(item, TensorRef) else item


def _put(item: Any, index_path: tuple[int, ...], stream: Tensor) -> Any:
    if not index_path:
        return stream
    first, *rest = index_path
    return type(item)(_put(part, tuple(rest), stream) if index == first else part for index, part in enumerate(item))
