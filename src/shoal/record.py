"""Everything measured, as plain data: every number with its n, interval, unit, and the machine it was taken on.

Differences are original against compressed, as fractions, positive = worse.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]


class NumberWithUnit(BaseModel):
    """A frozen, serialisable value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Machine(NumberWithUnit):
    """Where and with what something was measured."""

    device: str
    processor: str
    cores: int
    threads: int
    system: str
    python: str
    torch: str
    shoal: str
    libraries: dict[str, str] = Field(default_factory=dict)


class Quality(NumberWithUnit):
    """How good one network is on one split of one data set.

    `top1` is a fraction with a 95 % Wilson score interval; None where there are no labels. With a label at each of
    `tokens` positions `loss` is the mean over these, perplexity its exponential, and both 95 % intervals take the n
    sequences as the independent samples. Of a network with several outputs the figures are those of `output`, and
    `outputs` holds them all; of an output that is no scores of classes there are none without the original.
    """

    split: str
    n: int
    top1: float | None = None
    top1_interval: Interval | None = None
    loss: float | None = None
    tokens: int | None = None
    loss_interval: Interval | None = None
    perplexity: float | None = None
    perplexity_interval: Interval | None = None
    classes: int | None = None
    output: str | None = None
    outputs: list["Quality"] = Field(default_factory=list)


class Comparison(NumberWithUnit):
    """One network against the original, sample by sample on the same data.

    `top1_drop_interval` is Tango's 95 % score interval of a paired difference; `p_value` is McNemar's exact test on
    the discordant samples; `kl` is the damage with a 95 % t interval: of scores of classes the mean divergence
    KL(original || this) in nats, of values their `mse`, of several outputs the mean over them.
    `loss_increase` is per labelled position, with an interval paired by sequence; None with one label a sample.
    An output that is no scores of classes has nothing but that and `mse`: the mean squared error relative to the
    variance of the original's output, with a t interval. Of several outputs each stands in `outputs`; the others of the
    figures are those of the `output` of classes that lost most, and the `mse` that of the values that are farthest off.
    """

    split: str
    n: int
    kl: float
    kl_interval: Interval
    agreement: float | None = None
    agreement_interval: Interval | None = None
    mse: float | None = None
    mse_interval: Interval | None = None
    top1_drop: float | None = None
    top1_drop_interval: Interval | None = None
    p_value: float | None = None
    lost: int | None = None
    won: int | None = None
    loss_increase: float | None = None
    loss_increase_interval: Interval | None = None
    output: str | None = None
    outputs: list["Comparison"] = Field(default_factory=list)


def metric_drop(comparison: Comparison) -> float:
    """The drop of the metric as a fraction: of several outputs that of the one that lost most.

    It is the drop of top-1 where there are labels, else disagreement with the original; of values the squared error as
    a share of the variance of the original's output, which is the share of it that is no longer explained.
    """
    if comparison.outputs:
        return max(map(metric_drop, comparison.outputs))
    if comparison.top1_drop is not None:
        return comparison.top1_drop
    if comparison.agreement is not None:
        return 1 - comparison.agreement
    return comparison.mse if comparison.mse is not None else float("nan")


class OutputRead(NumberWithUnit):
    """How one tensor of the output was read, and why; `scale` is what squared errors of values are divided by."""

    name: str
    task: Literal["classes", "values"]
    why: str
    scale: float | None = None


class OutputsRead(NumberWithUnit):
    """How the network's outputs were read, and what damage means: `worth_kl`, `kl` of a step and of an ablation."""

    outputs: list[OutputRead]
    damage: str


class Latency(NumberWithUnit):
    """Time of one forward, in milliseconds: median and quartiles of `runs` timed blocks."""

    batch: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int
    device: str
    dtype: str
    threads: int
    channels_last: bool


class Cost(NumberWithUnit):
    """What a network takes. 1 MAC = one multiply-add (FLOPs = 2 MACs), for one sample of shape `input_shape`."""

    params: int
    macs: int
    not_counted: list[str] = Field(default_factory=list)
    weights_bytes: int
    input_shape: list[int]


class Network(NumberWithUnit):
    """One network: quality, latency per batch size, cost, and its residual blocks (its layers where it has none)."""

    quality: Quality
    latency: list[Latency]
    cost: Cost
    blocks: int


Fate = Literal["kept", "removed", "replaced"]


class BlockRecord(NumberWithUnit):
    """One block of the original chain: what it is, what it is worth alone, and what became of it.

    A block that is kept may be `without` some of its units (attention or MLP), by their numbers from 0.
    """

    path: str
    stage: int
    kind: str
    shortcut: str
    activation: str | None
    in_shape: list[int]
    out_shape: list[int]
    params: int
    removable: bool
    reason: str | None = None
    worth_kl: float | None = None
    worth_kl_interval: Interval | None = None
    residual_ratio: float | None = None
    fate: Fate = "kept"
    without: list[int] = []


class LearningStep(NumberWithUnit):
    """One step of the greedy removal: what was removed, and what the network was like after it."""

    removed: str
    kl: float
    kl_interval: Interval
    candidates: int
    n: int
    validation: Comparison | None = None
    seconds: float


class FrontPoint(NumberWithUnit):
    """One plan on the front of damage against latency, by the tables (additive; not measured end to end).

    `kinds` names the stand-in of each span of `replaced`; `depth` counts blocks and stand-ins that are left.
    """

    latency_ms: float
    damage: float
    macs: int
    params: int
    removed: list[str]
    replaced: list[list[str]]
    kinds: list[str] = []
    depth: int = 0


class PlanRound(NumberWithUnit):
    """One plan that was built and measured: what the tables promised, and what it was.

    `damage_refitted` is what a refit on a part of the samples left, where that was tried; plans are chosen by it.
    """

    latency_guessed_ms: float
    latency_measured_ms: float
    damage_guessed: float
    damage_measured: float
    damage_refitted: float | None = None
    chosen: bool = False


class Planning(NumberWithUnit):
    """How a plan was found: the tables' promises against the built networks, and what refitting won.

    Damage is mean KL(original || network) on held-back calibration samples, in nats. `latency_source` is 'measured'
    or where the latencies came from.
    """

    original_ms: float
    latency_source: str
    candidates: int
    rounds: list[PlanRound]
    damage_refitted: float
    damage_final: float
    front: list[FrontPoint]
    picked: int | None = None


class Certificate(NumberWithUnit):
    """Are two networks the same function, and on what evidence?

    identical: by construction, under the premises listed, and bitwise on the data. equal: within `tolerance` (absolute,
    on outputs) on n samples. different: the largest deviation, and where. Of several `outputs` the figures are those of
    the one farthest beyond its tolerance; empty for a network that returns one tensor.
    """

    verdict: Literal["identical", "equal", "different"]
    max_abs_diff: float
    where: str | None
    tolerance: float
    n: int
    premises: list[str] = Field(default_factory=list)
    bitwise: bool
    why_not_identical: str | None = None
    outputs: list[str] = Field(default_factory=list)


class RecoveryLook(NumberWithUnit):
    """One look at a student on its way, as in `recovery.jsonl`.

    `loss` is the mean since the look before, None at the start; `divergence` is that of the weights averaged over the
    latest steps (at step 0: of those that were given), None where it was not finite or the student had diverged.
    """

    step: int
    seconds: float
    rate: float
    loss: float | None = None
    divergence: float | None = None


class Recovery(NumberWithUnit):
    """What distillation won back.

    Divergences are mean KL(original || student) in nats on `n` validation samples and, where they can be blended, as
    many blends of them; nothing was trained on these. `rates_tried` holds the loss each learning rate of the short test
    ended with (None: not finite). `stopped`: the budget was used up; there was nothing more to win (early); nothing was
    lost in the first place (nothing); or the student diverged. `kept` names the weights that came out, `kept_step` when
    they stood. `seconds` include the test of rates and all looks; `rewritten` counts the stand-ins that learned as
    shortcut and rest, with a batch norm. `features` counts the blocks whose features were compared, and their error
    weighed `features_weight` in the loss (None: not recorded by older versions). `curve` holds the looks in order, from
    step 0, those before an interruption too; records of older versions have none.
    """

    budget: str
    steps: int
    samples: int
    seconds: float
    rate: float
    rates_tried: dict[str, float | None] = Field(default_factory=dict)
    optimizer: str
    divergence_before: float
    divergence_after: float
    n: int
    stopped: Literal["budget", "early", "nothing", "diverged"]
    kept: str
    kept_step: int
    features: int = 0
    features_weight: float | None = None
    rewritten: int = 0
    resumed: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    curve: list[RecoveryLook] = Field(default_factory=list)

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        how = {
            "budget": "",
            "early": "; stopped early, nothing more was won",
            "nothing": "; it was as near as rounding allows, there was nothing to win back",
            "diverged": "; it diverged and was stopped, the last good weights are kept",
        }[self.stopped]
        return (
            f"recovery: {self.steps} steps in {self.seconds:.0f} s at learning rate {self.rate:g}; divergence on "
            f"{self.n} validation samples {self.divergence_before:.4f} before, {self.divergence_after:.4f} after; "
            f"kept: {self.kept}{how}"
        )


class DistilRecord(NumberWithUnit):
    """One run of `distill`: a student against its teacher on test, before and after.

    `before` and `after` compare the student with the teacher (positive = the student is worse).
    """

    schema_version: int = 1
    command: str
    student: str
    teacher: str
    data: str
    unlabelled: str | None = None
    seed: int
    recovery: Recovery
    teacher_quality: Quality
    quality_before: Quality
    quality_after: Quality
    before: Comparison
    after: Comparison
    machine: Machine
    warnings: list[str] = Field(default_factory=list)
    seconds: float
    created: str


class Record(NumberWithUnit):
    """One run of `compress`: what was asked, done and measured."""

    schema_version: int = 1
    command: str
    model: str
    data: str
    seed: int
    goal: dict[str, Any]
    reached: bool
    message: str
    original: Network
    compressed: Network
    comparison: Comparison
    validation: Comparison | None = None
    certificate: Certificate
    removed: list[str]
    removed_units: list[str] = Field(default_factory=list)
    replaced: list[str] = Field(default_factory=list)
    folded: list[str] = Field(default_factory=list)
    fold_deviation: float | None = None
    blocks: list[BlockRecord]
    steps: list[LearningStep] = Field(default_factory=list)
    planning: Planning | None = None
    recovery: Recovery | None = None
    outputs: OutputsRead | None = None
    machine: Machine
    notes: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    seconds: float
    created: str


Verdict = Literal["trivial", "non-trivial", "undecided"]


class Ablation(NumberWithUnit):
    """What one ablation does, against the whole network on the same samples; differences positive = worse.

    `changed` is the fraction of samples whose answer changed, None where outputs are no scores of classes or there are
    several; `n` is less than the baseline's where the ablation was clear early (`--fast`). `kl` is the damage, in the
    unit that `outputs` of the record names; `loss` is the cross-entropy in nats, or the damage where there are no
    labels. Intervals are 95 %, paired, one comparison each; `familywise` is the verdict that still stands when all
    comparisons of the scan are to hold together (Bonferroni).
    """

    n: int
    loss: float
    top1: float | None = None
    kl: float
    changed: float | None = None
    top1_drop: float | None = None
    top1_drop_interval: Interval | None = None
    loss_increase: float
    loss_increase_interval: Interval
    verdict: Verdict
    familywise: Verdict


class ScannedBlock(NumberWithUnit):
    """One residual block: its ablations by name (`block`, `branch`, `mean`, `unit:0`, ...) and its scores by name."""

    path: str
    kind: str
    stage: int
    shortcut: str
    in_shape: list[int]
    out_shape: list[int]
    params: int
    removable: bool
    reason: str | None = None
    ablations: dict[str, Ablation] = Field(default_factory=dict)
    scores: dict[str, float] = Field(default_factory=dict)


class ScannedLayer(NumberWithUnit):
    """One convolution or linear layer with its kernel set to zero; `changes_channels` where in and out differ."""

    path: str
    kind: str
    block: str | None
    in_channels: int
    out_channels: int
    changes_channels: bool
    params: int
    ablations: dict[str, Ablation]


class ScoreQuality(NumberWithUnit):
    """How well a score orders the blocks: Spearman's rank correlation with the damage of the true ablation."""

    name: str
    source: str
    high_means: Literal["keep", "remove"]
    correlation: float | None
    correlation_interval: Interval | None = None
    blocks: int


class ChannelClaim(NumberWithUnit):
    """Do the layers that matter concentrate where the number of channels changes (arXiv:2009.09938)?

    Counts of layers by verdict among those that change the number of channels and the others; `p_value` is Fisher's
    exact test, two-sided, of non-trivial against the rest; None where a group is empty.
    """

    changing: dict[Verdict, int]
    others: dict[Verdict, int]
    p_value: float | None
    sentence: str


class Baseline(NumberWithUnit):
    """The whole network on the data of the scan."""

    top1: float | None
    top1_interval: Interval | None = None
    loss: float | None
    n: int
    split: str


class SecondData(NumberWithUnit):
    """The same ablations on a second data set: where the verdicts part."""

    data: str
    baseline: Baseline
    blocks: list[ScannedBlock]
    layers: list[ScannedLayer]
    differing: list[str]


class ScanRecord(NumberWithUnit):
    """One run of `scan`: what every block, branch and layer is worth."""

    schema_version: int = 1
    command: str
    model: str
    data: str
    seed: int
    tolerance: float
    metric: Literal["top1", "loss", "kl", "mse", "damage"]
    outputs: OutputsRead | None = None
    comparisons: int
    baseline: Baseline
    blocks: list[ScannedBlock]
    layers: list[ScannedLayer]
    scores: list[ScoreQuality]
    claim: ChannelClaim | None = None
    also: SecondData | None = None
    partly_measured: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    machine: Machine
    seconds: float
    created: str


def summary_of(record: Record, out: str) -> dict[str, Any]:
    """The short form that `shoal compress --json` prints."""
    return {
        "goal": record.goal,
        "reached": record.reached,
        "message": record.message,
        "original": _network_summary(record.original),
        "compressed": _network_summary(record.compressed),
        "removed": record.removed,
        "removed_units": record.removed_units,
        "replaced": record.replaced,
        "folded": record.folded,
        "fold_deviation": record.fold_deviation,
        "planning": _planning_summary(record.planning) if record.planning else None,
        "recovery": record.recovery.model_dump(mode="json", exclude={"curve"}) if record.recovery else None,
        "comparison": record.comparison.model_dump(mode="json"),
        "certificate": record.certificate.model_dump(mode="json"),
        "outputs": record.outputs.model_dump(mode="json") if record.outputs else None,
        "notes": record.notes,
        "warnings": record.warnings,
        "out": out,
    }


def _planning_summary(planning: Planning) -> dict[str, Any]:
    chosen = next(one for one in planning.rounds if one.chosen)
    return {
        "latency_source": planning.latency_source,
        "original_ms": planning.original_ms,
        **chosen.model_dump(mode="json", exclude={"chosen", "damage_refitted"}),
        "damage_final": planning.damage_final,
        "plans_built": len(planning.rounds),
        "front": len(planning.front),
        "picked": planning.picked,
    }


def _network_summary(network: Network) -> dict[str, Any]:
    latency = max(network.latency, key=lambda one: one.batch) if network.latency else None
    return {
        "top1": network.quality.top1,
        "top1_interval": network.quality.top1_interval,
        "loss": network.quality.loss,
        "perplexity": network.quality.perplexity,
        "perplexity_interval": network.quality.perplexity_interval,
        "tokens": network.quality.tokens,
        "n": network.quality.n,
        "latency_ms": latency.median_ms if latency else None,
        "latency": [one.model_dump(mode="json") for one in network.latency],
        "macs": network.cost.macs,
        "params": network.cost.params,
        "blocks": network.blocks,
    }
