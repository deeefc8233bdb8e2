"""The card of an output folder, README.md: what was done to which network, the figures with intervals, the licence."""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from shoal.files.reading import read_text
from shoal.plan import Plan
from shoal.record import Comparison, MetricComparison, Quality, Record
from shoal.store.folder import CARD
from shoal.store.origin import is_own, source_folder

# Networks that come with Shoal.
_OWN = ("digits-resnet", "cifar-preact-resnet")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_ -]{0,63}")


@dataclass(frozen=True)
class CardFigures:
    """What a card reports.

    Args:
        data: the specification of the data.
        seed: of the run.
        before: the original.
        after: the network of the folder.
        comparison: both on the same samples.
        machine: what latencies were measured on; empty without any.
        latencies: a line for each batch size.
    """

    data: str
    seed: int
    before: Quality
    after: Quality
    comparison: Comparison
    machine: str = ""
    latencies: tuple[str, ...] = ()

    @classmethod
    def of_record(cls, record: Record) -> "CardFigures":
        """Those of a run of `compress`."""
        pairs = zip(record.original.latency, record.compressed.latency, strict=False)
        latencies = tuple(
            f"Latency at batch {before.batch}: {before.median_ms:.3g} ms before, {after.median_ms:.3g} ms after"
            f"{f'; {after.ratio}' if after.ratio is not None else ''}."
            for before, after in pairs
        )
        machine = f"{record.machine.processor}, {record.machine.device}, torch {record.machine.torch}"
        before, after = record.original.quality, record.compressed.quality
        return cls(record.data, record.seed, before, after, record.comparison, machine, latencies)


def model_card(model: nn.Module, plan: Plan, measured: CardFigures | None) -> str:
    """The card, with the header that the hub reads."""
    source = source_folder(model)
    licence, base = licence_of(model, plan.model, source), _hub_name(model, source)
    header = ["---", *([f"license: {licence}"] if licence else []), *([f"base_model: {base}"] if base else [])]
    header += ["library_name: shoal", "tags:", "- shoal", "- pruned", "---"]
    origin = base or short_spec(plan.model)
    parts = [
        f"# {origin}, made shallower with Shoal",
        f"Shoal {version('shoal')} made this network from `{origin}`: {what_was_done(plan)}.",
        *(figures(measured) if measured is not None else []),
        "`shoal.load(folder)` loads it, `model.pt2` is loaded by torch alone, `report.html` shows the whole run, "
        "`record.json` holds every figure, and `config.yaml`, where there is one, repeats the run.",
        f"## Licence\n\n{_licence_text(licence, origin)}",
    ]
    return "\n".join(header) + "\n\n" + "\n\n".join(parts) + "\n"


def what_was_done(plan: Plan) -> str:
    """The actions of a plan in words."""
    done = []
    if removed := [*plan.removed, *plan.folded_away, *plan.removed_units]:
        done.append(f"{len(removed)} removed ({', '.join(f'`{path}`' for path in removed)})")
    for action in plan.replaced:
        if action.stand_in.attention is not None:
            done.append(f"`{action.stand_in.attention.module}` replaced by a linear map of what it is given")
        elif not action.stand_in.folded:
            done.append(f"{' + '.join(f'`{path}`' for path in action.paths)} replaced ({action.stand_in.kind})")
        else:
            done.append(f"the last linear layer of `{action.paths[0]}` fitted to take over what was removed behind it")
    if any(action.kind == "fold" for action in plan.actions):
        done.append("layers folded into their neighbours")
    return "; ".join(done) or "the same blocks, with other weights"


def figures(measured: CardFigures) -> list[str]:
    """What was measured, as a list."""
    before, after, seen = measured.before, measured.after, measured.comparison
    data = short_spec(measured.data)
    lines = [f"Chosen and measured on `{data}` (seed {measured.seed}), {after.split} part, n = {after.n}."]
    if before.top1 is not None and after.top1 is not None:
        lines.append(f"Top-1 accuracy: {_share(before)} before, {_share(after)} after.")
    if seen.top1_drop is not None and seen.top1_drop_interval is not None:
        low, high = (100 * bound for bound in seen.top1_drop_interval)
        lines.append(f"Drop: {100 * seen.top1_drop:.2f} points, paired 95 % interval {low:.2f} to {high:.2f}.")
    lines += [_metric(metric) for metric in seen.metrics]
    if before.loss is not None and after.loss is not None:
        lines.append(f"Loss, cross-entropy in nats: {before.loss:.4g} before, {after.loss:.4g} after.")
    if before.perplexity is not None and after.perplexity is not None:
        lines.append(
            f"Perplexity over {after.tokens} tokens, intervals by sequence: {_perplexity(before)} before, "
            f"{_perplexity(after)} after."
        )
    if seen.differing is not None:
        lines.append(f"Elements of integer outputs that differ from the original's: {seen.differing:.4g}.")
    if seen.agreement is not None:
        low, high = seen.kl_interval
        lines.append(f"KL(original || this): {seen.kl:.4g} nats, 95 % interval {low:.4g} to {high:.4g}.")
    elif seen.mse is not None:
        lines.append(f"Mean squared error relative to the variance of the original's output: {seen.mse:.4g}.")
    elif seen.cosine_distance is not None:
        lines.append(f"Mean of one minus the cosine with the original's output: {seen.cosine_distance:.4g}.")
    lines += measured.latencies
    if measured.latencies:
        lines.append(f"Timed on {measured.machine}.")
    return ["\n".join(f"- {line}" for line in lines)]


def _metric(metric: MetricComparison) -> str:
    """A task's metric of both networks, and how much worse the new one is."""
    after = _figure(metric, metric.compressed)
    line = f"{metric.label}: {after}, against the original's own output."
    if metric.original is not None:
        line = f"{metric.label}: {_figure(metric, metric.original)} before, {after} after."
    if metric.drop is None or metric.drop_interval is None or not all(map(math.isfinite, metric.drop_interval)):
        return line
    scale, unit = (100, "points") if metric.unit == "%" else (1, metric.unit)
    drop, low, high = (f"{scale * value:.4g}" for value in (metric.drop, *metric.drop_interval))
    return f"{line} Worse by {drop}{f' {unit}' if unit else ''}, paired 95 % interval {low} to {high}."


def _figure(metric: MetricComparison, value: float) -> str:
    return f"{100 * value:.2f} %" if metric.unit == "%" else f"{value:.4g} {metric.unit}".strip()


def licence_of(model: nn.Module, spec: str | None, source: Path | None) -> str | None:
    """The licence of the original, where its card or its library says it."""
    if spec is not None and spec.partition(":")[0] in _OWN:
        return "apache-2.0"
    configuration = getattr(model, "pretrained_cfg", None)  # timm
    known = configuration.get("license") if isinstance(configuration, dict) else None
    if source is not None and is_own(source / CARD, source):
        known = _header_of(source / CARD).get("license", known)
    return known if isinstance(known, str) and _LICENCE.fullmatch(known) else None


def short_spec(spec: str | None) -> str:
    """A specification without the folders of this machine."""
    if spec is None:
        return "a network made in Python"
    form, colon, place = spec.partition(":")
    if ".py" in form:
        return f"{Path(form).name}{colon}{place}"
    return f"{form}{colon}{Path(place).name if Path(place).is_absolute() or Path(place).exists() else place}"


def _header_of(card: Path) -> dict[str, Any]:
    """What the card of the original says of itself between two lines of dashes."""
    import yaml

    with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        text = read_text(card)
        header = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        return header if isinstance(header, dict) else {}
    return {}


def _hub_name(model: nn.Module, source: Path | None) -> str | None:
    name = str(getattr(model, "name_or_path", "") or "")
    return name if source is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _licence_text(licence: str | None, origin: str) -> str:
    if licence is None:
        return f"The weights derive from `{origin}`, whose licence applies. Shoal could not find out which it is."
    return f"The weights derive from `{origin}`, whose licence applies: {licence}."


def _perplexity(quality: Quality) -> str:
    low, high = quality.perplexity_interval or (0.0, math.inf)
    return f"{quality.perplexity:.4g} ({low:.4g} to {high:.4g})"


def _share(quality: Quality) -> str:
    value = f"{100 * (quality.top1 or 0):.2f} %"
    if quality.top1_interval is None:
        return value
    low, high = quality.top1_interval
    return f"{value} ({100 * low:.2f} to {100 * high:.2f})"
