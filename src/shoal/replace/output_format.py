"""How a block takes and returns the stream: first or by keyword; as a plain tensor, or in a tuple with unread values.

The network's code calls its blocks (`block(hidden=x)`), unpacks what they return (`x = block(x)[0]`) and may read plain
attributes of them; a replacement has to support all of it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shoal.blocks.template import Opaque, TensorRef, tensor_refs


@dataclass(frozen=True)
class OutputFormat:
    """What a block returns, and how it is called.

    Args:
        template: the numbers, strings and None around the stream; the value at `index_path` is ignored.
        index_path: indices through nested tuples and lists that lead to the stream; () for a plain tensor.
        stream_name: the keyword by which the block is given the stream; None: its first argument.
    """

    template: Any = None
    index_path: tuple[int, ...] = ()
    stream_name: str | None = None

    def entering(self, args: Any, kwargs: Any) -> Any:
        """The stream that a block is called with."""
        return args[0] if self.stream_name is None else kwargs[self.stream_name]

    def stream_first(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with the stream in front."""
        if self.stream_name not in kwargs:
            return args, kwargs
        others = {name: value for name, value in kwargs.items() if name != self.stream_name}
        return (kwargs[self.stream_name], *args), others

    def run(self, block: nn.Module, stream: Tensor, args: Any, kwargs: Any) -> Tensor:
        """The stream behind a block, called as the network calls it; `args` and `kwargs` are all but the stream."""
        if self.stream_name is None:
            return self.stream(block(stream, *args, **kwargs))
        return self.stream(block(*args, **{self.stream_name: stream}, **kwargs))

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
        """A forward to be called in this format, of one that takes the stream first and returns it alone."""
        if self == PLAIN:
            return forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self.stream_first(args, kwargs)
            return self.wrap(forward(*args, **kwargs))

        return wrapped

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        """As a forward hook of a replacement."""
        return self.wrap(output)


PLAIN = OutputFormat()


@dataclass(frozen=True)
class StreamFirst:
    """As a forward pre-hook of a replacement: moves the stream from its keyword to the front."""

    output_format: OutputFormat

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that the replacement is called with."""
        return self.output_format.stream_first(args, kwargs)


def infer_format(
    output: Any, stream: int, entering: Collection[int] = (), stream_name: str | None = None
) -> OutputFormat | None:
    """The format of a call's output template, in which value `stream` is the stream.

    None where it contains something that a replacement cannot return: one of the tensors `entering`, an unknown object,
    a mapping. Tensors made inside become None; the caller has to know that nobody reads them.
    """
    index_path = _index_path(output, stream)
    passed_through = [value for value in tensor_refs(output) if value in entering and value != stream]
    if index_path is None or passed_through or not _is_plain_data(output):
        return None
    return OutputFormat(_without_tensors(output) if index_path else None, index_path, stream_name)


def install_(model: nn.Module, path: str, module: nn.Module, output_format: OutputFormat = PLAIN) -> None:
    """Replace the block at `path` by `module`, which maps a tensor to one, and make it be called in `output_format`.

    Plain attributes of the block are copied to it: the network's code may read them.
    """
    copy_plain_attrs_(module, model.get_submodule(path))
    _adopt_format_(module, output_format)
    model.set_submodule(path, module, strict=True)


def copy_format_(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new`, made to return the format of `old` and to have its plain attributes, before it takes its place."""
    for hook in old._forward_hooks.values():
        if isinstance(hook, OutputFormat):
            _adopt_format_(new, hook)
    copy_plain_attrs_(new, old)
    return new


def _adopt_format_(module: nn.Module, output_format: OutputFormat) -> None:
    if output_format.stream_name is not None:
        module.register_forward_pre_hook(StreamFirst(output_format), with_kwargs=True)
    if output_format != PLAIN:
        module.register_forward_hook(output_format)


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
