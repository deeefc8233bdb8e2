"""What a network without residual additions has in their place, in words: recurrence, concatenation, gates."""

from collections import Counter

from shoal.blocks.operations import plain_name
from shoal.blocks.template import tensor_refs
from shoal.blocks.trace import OpRecord, Trace

_RECURRENT = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)
_JOINS = frozenset(["cat", "concat", "concatenate", "hstack", "dstack"])
_MIXES = frozenset(["lerp", "where"])


def explain_no_residuals(run: Trace) -> str:
    """One sentence on how a network without residual additions is joined together."""
    recurrent = [op for op in run.ops if plain_name(op.name) in _RECURRENT]
    if recurrent:
        return f"it is recurrent ({_counted(run, recurrent)}): a layer's state goes in a circle, it is not a block"
    concatenations = [op for op in run.ops if plain_name(op.name) in _JOINS and _joins_paths(run, op)]
    if concatenations:
        return (
            f"its paths are joined by concatenation ({_counted(run, concatenations)}): without a block its channels "
            "would be missing where they are read"
        )
    mixes = [op for op in run.ops if plain_name(op.name) in _MIXES]
    if mixes:
        return (
            f"it mixes paths by {_counted(run, mixes)}: an adapter can say what is left of a block (docs/adapters.md)"
        )
    return "its layers follow each other; spans of them can be replaced by plan"


def _joins_paths(run: Trace, op: OpRecord) -> bool:
    """Whether at least two of the parts were computed from the network's input by ways of their own."""
    parts = {value for value in tensor_refs(op.args[:1]) if any(run.depends(value, one) for one in run.inputs)}
    return len(parts) >= 2


def _counted(run: Trace, ops: list[OpRecord]) -> str:
    """`3 x cat, first in 'features.block1'`."""
    name, _ = Counter(plain_name(op.name) for op in ops).most_common(1)[0]
    call = ops[0].call
    where = run.calls[call].path if call >= 0 else ""
    return f"{len(ops)} x {name}, first in '{where}'" if where else f"{len(ops)} x {name}"
