"""The sentences both reports share: headline, goal, verdict."""

from typing import Any

from shoal.record import Certificate, Comparison, Cost, Record
from shoal.report import numbers, speed

_GOALS = {
    "latency": "latency",
    "macs": "MACs",
    "params": "parameters",
}
VERDICTS = {
    "identical": "Identical by construction",
    "equal": "Equal within the tolerance",
    "different": "A different function",
}


def headline(record: Record) -> str:
    """What was done, in one plain sentence."""
    parts = [_blocks(record), _identity(record), _quality(record)]
    timings = [pair for pair in speed.pairs(record) if pair.speedup is not None]
    if timings:
        largest = timings[-1]
        parts.append(f"{_headline_speed(largest)} at batch {largest.batch}")
    return "; ".join(part for part in parts if part)


def _headline_speed(pair: speed.Pair) -> str:
    text = speed.words(pair)
    return "speed no different beyond noise" if pair.within_noise else text


def _blocks(record: Record) -> str:
    removed, total = len(record.removed), record.original.blocks
    if not total:
        text = "No residual block found"
    elif not removed and not record.replaced:
        text = f"None of {total} blocks removed"
    else:
        text = f"{removed} of {total} blocks removed"
    units = len(record.removed_units)
    if units and not removed:
        text = f"{_units(units)} removed from {total} blocks"
    elif units:
        text = f"{removed} of {total} blocks and {_units(units)} removed"
    if not record.replaced:
        return text
    replaced = sum(block.fate == "replaced" for block in record.blocks)
    return f"{text}, {replaced} replaced by {len(record.replaced)} stand-ins"


def _units(count: int) -> str:
    return f"{count} single unit" if count == 1 else f"{count} single units"


def _identity(record: Record) -> str:
    same = (
        (record.removed or record.removed_units)
        and record.certificate.verdict == "identical"
        and record.certificate.bitwise
    )
    return "the same function, bit for bit" if same else ""


def _quality(record: Record) -> str:
    before, after = record.original.quality, record.compressed.quality
    things = f"{numbers.count(after.n)} {after.split} {samples(record.original.cost)}"
    if numbers.known(before.top1) and numbers.known(after.top1):
        return f"top-1 {numbers.percent(before.top1)} → {numbers.percent(after.top1)} on {things}"
    if numbers.known(before.perplexity) and numbers.known(after.perplexity):
        sequences = f"{numbers.count(after.n)} {after.split} sequence{'' if after.n == 1 else 's'}"
        ends = numbers.significant(before.perplexity), numbers.significant(after.perplexity)
        return f"perplexity {ends[0]} → {ends[1]} on {numbers.count(after.tokens)} tokens of {sequences}"
    if numbers.known(record.comparison.agreement):
        return f"same answer as the original on {numbers.percent(record.comparison.agreement)} of {things}"
    return ""


def samples(cost: Cost) -> str:
    """What one sample is called: an image where its shape is that of one."""
    shape = cost.input_shape
    return "images" if len(shape) >= 3 and shape[-3] in (1, 3) else "samples"


def goal(asked: dict[str, Any]) -> str:
    """What was asked for, in words; a key nobody knows is shown as it is."""
    if not asked:
        return "Nothing in particular"
    counted = "unit" if asked.get("grain") == "unit" else "block"
    said = {key: value for key, value in asked.items() if key != "grain" and value is not None}
    text = ", ".join(_one_goal(key, value, counted) for key, value in said.items())
    if counted == "unit":
        text += ", attention and MLP of a block each on their own"
    return text[:1].upper() + text[1:] if text else "Nothing in particular"


def _one_goal(key: str, value: Any, counted: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "max_drop" and number:
        return f"lose at most {numbers.significant(value)} points of the metric on validation"
    if key == "remove" and number:
        return f"remove {numbers.tick(value)} {counted}{'' if value == 1 else 's'}"
    if key == "exact" and value is True:
        return "remove only what changes nothing"
    if key in _GOALS:
        return f"{_GOALS[key]} at most {_target(key, value)}"
    return f"{key.replace('_', ' ')}: {value}"


def _target(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if 0 < value <= 1:
        return f"{numbers.percent(value)} of the original"
    return numbers.milliseconds(value) if key == "latency" else numbers.amount(value)


def evidence(certificate: Certificate) -> str:
    """The evidence behind a verdict, as one sentence."""
    n = f"{numbers.count(certificate.n)} sample{'' if certificate.n == 1 else 's'}"
    tolerance = f"the tolerance was {numbers.significant(certificate.tolerance, 2)}"
    largest = numbers.significant(certificate.max_abs_diff)
    if certificate.bitwise:
        return f"The outputs were equal bit for bit on {n}."
    if certificate.verdict == "different":
        place = f", at {certificate.where}" if certificate.where else ""
        return f"The outputs differ by up to {largest} on {n}{place}; {tolerance}."
    return f"The largest difference of an output was {largest} on {n}; {tolerance}."


def discordant(comparison: Comparison) -> str:
    """Which samples changed sides: `5 lost, 4 won`."""
    if comparison.lost is None or comparison.won is None:
        return numbers.MISSING
    return f"{numbers.count(comparison.lost)} lost, {numbers.count(comparison.won)} won"
