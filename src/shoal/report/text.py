"""The sentences that the page and the terminal share: headline, goal, verdict."""

from typing import Any

from shoal.record import Certificate, NetworkCost, Record
from shoal.report import metrics, numbers
from shoal.report.comparison import LatencyPair, latency_pairs, speed_change

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


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 block`, `1,200 blocks`."""
    return f"{numbers.count(count)} {noun}{'' if count == 1 else 's'}"


def headline(record: Record) -> str:
    """What was done, in one plain sentence."""
    parts = [_blocks(record), _identity(record), _quality(record)]
    timed = [pair for pair in latency_pairs(record) if pair.speedup is not None]
    if timed:
        largest = timed[-1]
        parts.append(f"{_headline_speed(largest)} at batch {largest.batch}")
    return "; ".join(part for part in parts if part)


def _headline_speed(pair: LatencyPair) -> str:
    if pair.within_noise:
        return "no speed difference beyond noise"
    return speed_change(pair) if pair.ratio is None else str(pair.ratio)


def _blocks(record: Record) -> str:
    removed, total = len(record.removed), record.original.blocks
    if not total:
        text = "No residual block detected"
    elif not removed and not record.replaced:
        text = f"None of {total} blocks removed"
    else:
        text = f"{removed} of {total} blocks removed"
    units = len(record.removed_units)
    if units and not removed:
        text = f"{plural(units, 'single unit')} removed from {total} blocks"
    elif units:
        text = f"{removed} of {total} blocks and {plural(units, 'single unit')} removed"
    if not record.replaced:
        return text
    replaced = sum(block.action == "replaced" for block in record.blocks)
    return f"{text}, {replaced} replaced by {plural(len(record.replaced), 'fitted replacement')}"


def _identity(record: Record) -> str:
    same = (
        (record.removed or record.removed_units)
        and record.certificate.verdict == "identical"
        and record.certificate.bitwise
    )
    return "the same function, bit for bit" if same else ""


def _quality(record: Record) -> str:
    before, after = record.original.quality, record.compressed.quality
    samples = f"{numbers.count(after.n)} {after.split} {sample_noun(record.original.cost)}"
    if record.comparison.metrics:
        return metrics.headline(record)
    if numbers.known(before.top1) and numbers.known(after.top1):
        return f"top-1 {numbers.percent(before.top1)} → {numbers.percent(after.top1)} on {samples}"
    if numbers.known(before.perplexity) and numbers.known(after.perplexity):
        sequences = plural(after.n, f"{after.split} sequence")
        ends = numbers.significant(before.perplexity), numbers.significant(after.perplexity)
        return f"perplexity {ends[0]} → {ends[1]} on {numbers.count(after.tokens)} tokens of {sequences}"
    if numbers.known(record.comparison.agreement):
        return f"same answer as the original on {numbers.percent(record.comparison.agreement)} of {samples}"
    if numbers.known(record.comparison.mse):
        return f"off by {numbers.significant(record.comparison.mse)} of the output's variance on {samples}"
    if numbers.known(record.comparison.cosine_distance):
        return f"at a cosine distance of {numbers.significant(record.comparison.cosine_distance)} on {samples}"
    if numbers.known(record.comparison.differing):
        return f"{numbers.percent(record.comparison.differing)} of the output's elements differ on {samples}"
    return ""


def sample_noun(cost: NetworkCost) -> str:
    """What samples are called: images where the input has the shape of one."""
    shape = cost.input_shape
    return "images" if len(shape) >= 3 and shape[-3] in (1, 3) else "samples"


def goal(request: dict[str, Any]) -> str:
    """The goal in words; an unknown key is shown as it is."""
    unit = "unit" if request.get("grain") == "unit" else "block"
    set_keys = {key: value for key, value in request.items() if key != "grain" and value is not None}
    text = ", ".join(_goal_clause(key, value, unit) for key, value in set_keys.items())
    if text and unit == "unit":
        text += ", counting the attention and the MLP of a block separately"
    return text[:1].upper() + text[1:] if text else "No goal"


def _goal_clause(key: str, value: Any, unit: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "max_drop" and number:
        return f"lose at most {numbers.significant(value)} points of the metric on validation"
    if key == "remove" and number:
        return f"remove {numbers.tick(value)} {unit}{'' if value == 1 else 's'}"
    if key == "exact" and value is True:
        return "remove only what leaves the function unchanged"
    if key in _GOALS:
        return f"{_GOALS[key]} at most {_limit(key, value)}"
    return f"{key.replace('_', ' ')}: {value}"


def _limit(key: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if 0 < value <= 1:
        return f"{numbers.percent(value)} of the original"
    return numbers.milliseconds(value) if key == "latency" else numbers.amount(value)


def evidence(certificate: Certificate) -> str:
    """The evidence behind a verdict, as one sentence."""
    n = plural(certificate.n, "sample")
    tolerance = f"the tolerance was {numbers.significant(certificate.tolerance, 2)}"
    largest = numbers.significant(certificate.max_abs_diff)
    if certificate.bitwise:
        return f"The outputs were bitwise equal on {n}."
    if certificate.verdict == "different":
        place = f", at {certificate.where}" if certificate.where else ""
        return f"The outputs differ by up to {largest} on {n}{place}; {tolerance}."
    return f"The largest difference between the outputs was {largest} on {n}; {tolerance}."
