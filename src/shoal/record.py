"""Everything measured, as plain data: every number with its n, interval, unit, and the machine it was taken on.

Differences are original against compressed, as fractions, positive = worse. Records of version 0.1.0 call some fields
by other names; they are read under both.
"""

import warnings
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

Interval = tuple[float, float]


class FrozenModel(BaseModel):
    """A frozen, serialisable value that refuses unknown fields."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def _former_name(field: str, old: str) -> Any:
    """A property under the name that a field had in version 0.1.0."""

    def read(self: Any) -> Any:
        warnings.warn(f"'{old}' is called '{field}' now", DeprecationWarning, stacklevel=2)
        return getattr(self, field)

    return property(read, doc=f"The former name of `{field}`.")


class Machine(FrozenModel):
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


class Quality(FrozenModel):
    """How good one network is on one split of one data set.

    `top1` is a fraction with a 95 % Wilson score interval; None where there are no labels. With a label at each of
    `tokens` positions (pixels of a map) `loss` is the mean over these, perplexity of a text its exponential, and both
    95 % intervals take the n samples as independent. Of a network with several outputs the figures are those of
    `output`, and `outputs` holds them all; an output other than class scores has no figures without the original to
    compare with.
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


class MetricComparison(FrozenModel):
    """A task's metric of both networks on the same samples, see `shoal.tasks`.

    Intervals are 95 % percentile intervals of a bootstrap by sample, paired for `drop`, which is positive where the
    compressed network is worse, in the metric's own unit.

    Args:
        name: of the metric: `miou`.
        label: for people: `mIoU`.
        unit: `%` (values are fractions then), `dB`, or empty.
        better: which way is better.
        against: the labels, or the original's own output.
        n: samples.
        original: of the original; None where the original is what the metric compares with.
        compressed: of the compressed network.
        drop: how much worse the compressed network is; None where it is compared with the original, and the metric
            has no figure for two equal outputs.
        groups: the compressed network's figure for each group of samples, such as each timestep.
        grouped_by: what the groups are: `timestep`.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    against: Literal["labels", "original"]
    n: int
    original: float | None = None
    original_interval: Interval | None = None
    compressed: float
    compressed_interval: Interval
    drop: float | None = None
    drop_interval: Interval | None = None
    groups: dict[str, float] = Field(default_factory=dict)
    grouped_by: str = "group"


class Comparison(FrozenModel):
    """One network against the original, sample by sample on the same data.

    `top1_drop_interval` is Tango's 95 % score interval of a paired difference; `p_value` is McNemar's exact test on
    the discordant samples; `kl` is the damage with a 95 % t interval: of scores of classes the mean divergence
    KL(original || this) in nats, of values their `mse`, of several outputs the mean over them.
    `loss_increase` is per labelled position, with an interval paired by sequence; None with one label per sample.
    An output other than class scores has only that and `mse`: the mean squared error relative to the variance of the
    original's output, with a t interval. Of several outputs each stands in `outputs`; `mse` is then that of the values
    farthest off, and all other figures are those of the class `output` that lost most. An output of integers or
    booleans has `differing`, the mean share of its elements that are not the original's; one of embeddings
    `cosine_distance`, the mean of one minus the cosine. `metrics` are those of the task, the one that counts first.
    """

    split: str
    n: int
    kl: float
    kl_interval: Interval
    agreement: float | None = None
    agreement_interval: Interval | None = None
    mse: float | None = None
    mse_interval: Interval | None = None
    differing: float | None = None
    differing_interval: Interval | None = None
    cosine_distance: float | None = None
    cosine_distance_interval: Interval | None = None
    top1_drop: float | None = None
    top1_drop_interval: Interval | None = None
    p_value: float | None = None
    lost: int | None = None
    won: int | None = None
    loss_increase: float | None = None
    loss_increase_interval: Interval | None = None
    output: str | None = None
    outputs: list["Comparison"] = Field(default_factory=list)
    metrics: list[MetricComparison] = Field(default_factory=list)


def metric_drop(comparison: Comparison) -> float:
    """The drop of the metric as a fraction; of several outputs the largest.

    It is the drop of top-1 where there are labels, else the disagreement with the original; for values the squared
    error as a share of the variance of the original's output, that is the variance left unexplained; for integers the
    share that differs. Where a task has a metric it is the drop of the first: a point is one per cent of a share, and
    one unit (a decibel) of any other.
    """
    for metric in comparison.metrics:
        if metric.drop is not None:
            return metric.drop if metric.unit == "%" else metric.drop / 100
    if comparison.outputs:
        return max(map(metric_drop, comparison.outputs))
    if comparison.top1_drop is not None:
        return comparison.top1_drop
    if comparison.agreement is not None:
        return 1 - comparison.agreement
    if comparison.mse is not None:
        return comparison.mse
    if comparison.cosine_distance is not None:
        return comparison.cosine_distance
    return comparison.differing if comparison.differing is not None else float("nan")


class OutputRead(FrozenModel):
    """How one output tensor was read, and why; squared errors of values are divided by `scale`."""

    name: str
    task: Literal["classes", "values", "exact", "direction"]
    why: str
    scale: float | None = None


class OutputsRead(FrozenModel):
    """How the network's outputs were read, and what damage means: `removal_kl`, and `kl` of a step or an ablation."""

    outputs: list[OutputRead]
    damage: str
    task: str | None = None


class LatencyRatio(FrozenModel):
    """The latency of a network as a share of the original's, from pairs of timings within milliseconds of each other.

    `low` to `high` holds the ratio with 95 % confidence; `rounds` counts the pairs, none where the times were not
    measured here. `drift` is by how much the ratio rose from the first third of the pairs to the last, as a share of
    it, and `drift_interval` holds that with 95 % confidence; `original_drift` is the same of the original's own time,
    which tells how steady the machine was. `precision` is the width that was asked for, as a share of the ratio. With
    the clock 'running' only the time counts in which the calling thread was on a core: it never waited of its own
    accord, and what other programs took from it is left out. `instructions` is the ratio of the instructions that a
    forward takes, a second opinion where the system counts them; `conditions` tells why it does not, and on which cores
    the process was isolated if that was asked for.
    """

    ratio: float
    low: float
    high: float
    rounds: int = 0
    drift: float = 0.0
    drift_interval: Interval | None = None
    original_drift: float = 0.0
    original_ms: float | None = None
    precision: float | None = None
    clock: Literal["wall", "running"] = "wall"
    batch: int | None = None
    instructions: float | None = None
    conditions: list[str] = []

    def __str__(self) -> str:
        interval = f" ({self.low:.3g} to {self.high:.3g})" if self.rounds else ""
        return f"{self.ratio:.3g}{interval} of the original's latency"

    @property
    def is_within_noise(self) -> bool:
        """Whether neither network can be called faster."""
        return self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        """The width of the interval, as a share of the ratio."""
        return (self.high - self.low) / self.ratio

    @property
    def is_precise(self) -> bool:
        """Whether the interval is as narrow as was asked for; False where time ran out before."""
        return self.precision is None or self.width <= self.precision


class Latency(FrozenModel):
    """Time of one forward, in milliseconds: median and quartiles of `runs` timed blocks.

    `ratio` compares it with the original's, from pairs of timings; it is more exact than the medians are.
    """

    batch: int
    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int
    device: str
    dtype: str
    threads: int
    channels_last: bool
    ratio: LatencyRatio | None = None


class BudgetCheck(FrozenModel):
    """Whether a latency budget is met, by a timing of its own that had no part in the choice of the plan.

    `allowed` is the share of the original's latency that was asked for, `ratios` what came of it at each batch size,
    `used` how much of what was allowed the slowest of them takes, and `met` whether the upper end of every interval is
    within 1.02 times what was allowed. `attempts` counts the plans that were checked.
    """

    allowed: float
    ratios: list[LatencyRatio]
    met: bool
    used: float
    attempts: int = 1

    @property
    def worst(self) -> LatencyRatio:
        """Where the network is the slowest, as a share of the original."""
        return max(self.ratios, key=lambda ratio: ratio.ratio)


class NetworkCost(FrozenModel):
    """What a network takes. 1 MAC = one multiply-add (FLOPs = 2 MACs), for one sample of shape `input_shape`."""

    params: int
    macs: int
    not_counted: list[str] = Field(default_factory=list)
    weights_bytes: int
    input_shape: list[int]


class Network(FrozenModel):
    """One network: quality, latency per batch size, cost, and its number of residual blocks (or of layers)."""

    quality: Quality
    latency: list[Latency]
    cost: NetworkCost
    blocks: int


BlockAction = Literal["kept", "removed", "replaced"]


class BlockRecord(FrozenModel):
    """One block of the original chain: what it is, the damage of removing it alone, and what was done to it.

    A kept block may be `without` some of its units (attention or MLP), numbered from 0.
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
    removal_kl: float | None = Field(default=None, validation_alias=AliasChoices("removal_kl", "worth_kl"))
    removal_kl_interval: Interval | None = Field(
        default=None, validation_alias=AliasChoices("removal_kl_interval", "worth_kl_interval")
    )
    residual_ratio: float | None = None
    action: BlockAction = Field(default="kept", validation_alias=AliasChoices("action", "fate"))
    without: list[int] = []

    worth_kl: ClassVar[Any] = _former_name("removal_kl", "worth_kl")
    worth_kl_interval: ClassVar[Any] = _former_name("removal_kl_interval", "worth_kl_interval")
    fate: ClassVar[Any] = _former_name("action", "fate")


class RemovalStep(FrozenModel):
    """One step of the greedy removal: what was removed, and the damage after it.

    Of the `candidates` as many were `measured`; the others were bounded (see `pipeline.removal_screen`).
    """

    removed: str
    kl: float
    kl_interval: Interval
    candidates: int
    measured: int | None = None
    n: int
    validation: Comparison | None = None
    seconds: float


class FrontPoint(FrozenModel):
    """One plan on the front of damage against latency, predicted from the candidate table (not measured end to end).

    `kinds` names the replacement of each span of `replaced`; `depth` counts the remaining blocks and replacements.
    """

    latency_ms: float
    damage: float
    macs: int
    params: int
    removed: list[str]
    replaced: list[list[str]]
    kinds: list[str] = []
    depth: int = 0


PlanOrigin = Literal[
    "solver", "most parameters", "removals only", "lowest influence", "block influence", "last-k", "uniform"
]


class PlanRound(FrozenModel):
    """One plan that was built and measured: predicted against measured latency and damage.

    `damage_refitted` is the damage after a quick refit on some of the samples, if any; without a race plans are chosen
    by it. `origin` is what made the plan: the solver, or a rule that only removes. `damage_guessed` is that after a
    refit where there is a `damage_raw`, which is the guess without one; older records guess without one alone.
    """

    latency_guessed_ms: float
    latency_measured_ms: float
    damage_guessed: float
    damage_measured: float
    damage_refitted: float | None = None
    chosen: bool = False
    origin: PlanOrigin = "solver"
    damage_raw: float | None = None

    @property
    def damage_comparison(self) -> tuple[float, float]:
        """Predicted and measured damage of one kind: after a refit where both are known, else before it."""
        if self.damage_raw is None:
            return self.damage_guessed, self.damage_measured
        if self.damage_refitted is None:
            return self.damage_raw, self.damage_measured
        return self.damage_guessed, self.damage_refitted


class RaceContender(FrozenModel):
    """One plan of a race.

    `plan` is its number among the rounds, from 1; `latency_ratio` and `damage` are those it entered with, the latter on
    the samples that damages are measured on. All other divergences are mean KL(original || network) on the validation
    samples of recovery: `divergence_before` the first step, and after each rung it ran in (None: not finite);
    `expected` is what its learning curve comes to at the end of the recovery, after each rung (older records have
    none). `ranks` are those in these rungs, by what is expected, 1 the best; `final_rank` also orders those that were
    eliminated, by their last rung. `steps` and `seconds` are its own.
    """

    plan: int
    origin: PlanOrigin
    removed: int
    replaced: int
    stand_ins: int
    latency_ratio: float
    damage: float
    divergence_before: float | None = None
    divergences: list[float | None] = Field(default_factory=list)
    expected: list[float | None] = Field(default_factory=list)
    ranks: list[int] = Field(default_factory=list)
    final_rank: int
    steps: int
    seconds: float
    outcome: Literal["won", "eliminated", "diverged", "failed"]
    note: str = ""


class PlanRace(FrozenModel):
    """Plans that were distilled briefly, at the same rate on the same mini-batches; after each rung half of them go on.

    `rungs` are numbers of steps from the start. `tau` is Kendall's correlation of the ranks after the first rung with
    the final ones, `tau_damage` that of the damage before any step with the final ranks; None where there is none to
    compute. `steps` and `seconds` are those of all contenders, `share` is what they took of the `budget` of the whole
    recovery. `continued`: recovery goes on from what the winner has learned.
    """

    contenders: list[RaceContender]
    rungs: list[int]
    rate: float
    n: int
    tau: float | None = None
    tau_damage: float | None = None
    steps: int
    seconds: float
    budget: str
    share: float
    continued: bool = True

    @property
    def winner(self) -> RaceContender:
        """The contender that was chosen."""
        return next(contender for contender in self.contenders if contender.outcome == "won")

    @property
    def summary(self) -> str:
        """All of it in one sentence."""
        winner = self.winner
        better = sum(contender.damage < winner.damage for contender in self.contenders)
        agreement = f", Kendall's tau of first and final ranks {self.tau:.2f}" if self.tau is not None else ""
        return (
            f"race: {len(self.contenders)} plans distilled for up to {self.rungs[-1]} steps, {self.steps} in all "
            f"({self.seconds:.0f} s, {100 * self.share:.0f} % of the recovery budget of {self.budget}){agreement}; "
            f"kept: plan {winner.plan} ({winner.origin}), number {better + 1} by damage before"
        )


class GuessError(FrozenModel):
    """How far a guess of damage is off: the median of |log(guess / damage)|, and Spearman's rank correlation."""

    median_log_ratio: float
    spearman: float | None = None


class GuessErrors(FrozenModel):
    """How far guessed damages of the plans that were built and refitted on a part are from what was measured then.

    raw: sums of damages without a refit. refitted: with the cheapest refit of each change. corrected: these with what
    pairs of changes do together beyond the sum; so the solver counts.
    """

    n: int
    raw: GuessError
    refitted: GuessError
    corrected: GuessError


class Planning(FrozenModel):
    """How the plan was found: predictions against measurements, and the gain from refitting.

    Damage is mean KL(original || network) on held-out calibration samples, in nats. `latency_source` is 'measured'
    or names where the latencies came from. `guess_errors` says how far predicted damages are off.
    """

    original_ms: float
    latency_source: str
    candidates: int
    rounds: list[PlanRound]
    damage_refitted: float
    damage_final: float
    front: list[FrontPoint]
    picked: int | None = None
    budget_check: BudgetCheck | None = None
    race: PlanRace | None = None
    guess_errors: GuessErrors | None = None


class Certificate(FrozenModel):
    """Whether two networks are the same function, and on what evidence.

    identical: by construction, under the premises listed, and bitwise on the data. equal: within `tolerance` (absolute,
    on outputs) on n samples. different: the largest deviation, and where. Of several `outputs` the figures are those of
    the one that exceeds its tolerance most; `outputs` is empty for a network that returns one tensor.
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


class RecoveryEvaluation(FrozenModel):
    """One evaluation of the student during training, as in `recovery.jsonl`.

    `loss` is the mean since the last evaluation, None at the start; `divergence` is that of the weights averaged over
    the latest steps (at step 0 of the initial weights), None where it was not finite or the student had diverged.
    """

    step: int
    seconds: float
    rate: float
    loss: float | None = None
    divergence: float | None = None


class TeacherCacheRecord(FrozenModel):
    """The teacher's outputs on disk: the `top_k` largest of each of `n` samples or positions, the others spread evenly.

    `error` is what that leaves out, the mean KL(teacher || what is kept) in nats. `missed` mini-batches were not there
    when they were needed, since the data came otherwise than before, and the teacher was asked again.
    """

    top_k: int
    error: float
    n: int
    bytes: int
    missed: int = 0


class Recovery(FrozenModel):
    """What distillation recovered.

    Divergences are mean KL(original || student) in nats on `n` validation samples and, where samples can be mixed, as
    many mixtures of them; none of these was trained on. `rates_tried` holds the final loss of each learning rate in the
    short search (None: not finite). `stopped`: the budget was used up; no further gain (early); nothing had been lost
    (nothing); or the student diverged. `kept` names the returned weights, `kept_step` the step they are from. `seconds`
    includes the learning-rate search and all evaluations; `rewritten` counts the replacements trained as shortcut plus
    residual, with a batch norm. `features` counts the blocks whose features were compared, `features_weight` is the
    weight of their error in the loss (None: not recorded by older versions). `curve` holds the evaluations in order,
    from step 0 and across interruptions; empty in records of older versions.
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
    processes: int = 1
    teacher_cache: TeacherCacheRecord | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    curve: list[RecoveryEvaluation] = Field(default_factory=list)

    @property
    def summary(self) -> str:
        """All of it in one sentence."""
        stop_reason = {
            "budget": "",
            "early": "; stopped early, no further gain",
            "nothing": "; the outputs already agreed to rounding, there was nothing to recover",
            "diverged": "; it diverged and was stopped, the last good weights are kept",
        }[self.stopped]
        return (
            f"recovery: {self.steps} steps in {self.seconds:.0f} s at learning rate {self.rate:g}; divergence on "
            f"{self.n} validation samples {self.divergence_before:.4f} before, {self.divergence_after:.4f} after; "
            f"kept: {self.kept}{stop_reason}"
        )


class DistillRecord(FrozenModel):
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


class TaskScore(FrozenModel):
    """One metric of one task, of both networks on the same samples; a positive `drop` says the compressed is worse."""

    task: str
    metric: str
    n: int
    original: float
    compressed: float
    drop: float
    drop_interval: Interval
    method: str


class TaskEvaluation(FrozenModel):
    """One run of `eval`: public tasks, original and compressed side by side.

    Args:
        command: as it was typed.
        harness: what measured, with its version.
        limit: how many samples of each task at most.
        shots: examples in front of each sample; None as the tasks say.
        scores: one for each task and metric.
        notes: what was left out, and why.
        machine: where it ran.
        seconds: how long it took.
        created: when.
    """

    command: str
    harness: str
    limit: int | None = None
    shots: int | None = None
    scores: list[TaskScore]
    notes: list[str] = Field(default_factory=list)
    machine: Machine
    seconds: float
    created: str


class Record(FrozenModel):
    """One run of `compress`: what was requested, done and measured."""

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
    steps: list[RemovalStep] = Field(default_factory=list)
    planning: Planning | None = None
    recovery: Recovery | None = None
    outputs: OutputsRead | None = None
    evaluations: list[TaskEvaluation] = Field(default_factory=list)
    machine: Machine
    notes: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    seconds: float
    created: str


Verdict = Literal["trivial", "non-trivial", "undecided"]


class Ablation(FrozenModel):
    """The effect of one ablation, against the unchanged network on the same samples; differences positive = worse.

    `changed` is the fraction of samples whose prediction changed, None for several outputs or outputs other than class
    scores; `n` is less than the baseline's where the verdict was clear early (`--fast`). `kl` is the damage, in the
    unit that `outputs` of the record names; `loss` is the cross-entropy in nats, or the damage where there are no
    labels. Intervals are 95 %, paired, for this comparison alone; `familywise` is the verdict corrected for all
    comparisons of the scan (Bonferroni).
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


class ScannedBlock(FrozenModel):
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


class ScannedLayer(FrozenModel):
    """One convolution or linear layer with its kernel set to zero; `changes_channels` where in and out differ."""

    path: str
    kind: str
    block: str | None
    in_channels: int
    out_channels: int
    changes_channels: bool
    params: int
    ablations: dict[str, Ablation]


class ScoreQuality(FrozenModel):
    """How well a score ranks the blocks: Spearman's rank correlation with the damage of the actual ablation."""

    name: str
    source: str
    high_means: Literal["keep", "remove"]
    correlation: float | None
    correlation_interval: Interval | None = None
    blocks: int


class ChannelChangeHypothesis(FrozenModel):
    """Do the layers that matter concentrate where the number of channels changes (arXiv:2009.09938)?

    Counts of layers by verdict among those that change the number of channels and the others; `p_value` is Fisher's
    exact test, two-sided, of non-trivial against the rest; None where a group is empty.
    """

    changing: dict[Verdict, int]
    others: dict[Verdict, int]
    p_value: float | None
    sentence: str


class Baseline(FrozenModel):
    """The unchanged network on the data of the scan."""

    top1: float | None
    top1_interval: Interval | None = None
    loss: float | None
    n: int
    split: str


class SecondData(FrozenModel):
    """The same ablations on a second data set; `differing` names those with another verdict."""

    data: str
    baseline: Baseline
    blocks: list[ScannedBlock]
    layers: list[ScannedLayer]
    differing: list[str]


class ScanRecord(FrozenModel):
    """One run of `scan`: the effect of ablating every block, branch and layer."""

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
    claim: ChannelChangeHypothesis | None = None
    also: SecondData | None = None
    early_stopped: list[str] = Field(
        default_factory=list, validation_alias=AliasChoices("early_stopped", "partly_measured")
    )
    notes: list[str] = Field(default_factory=list)
    machine: Machine
    seconds: float
    created: str

    partly_measured: ClassVar[Any] = _former_name("early_stopped", "partly_measured")


def summary_of(record: Record, out: str) -> dict[str, Any]:
    """The short form that `shoal compress --json` prints."""
    return {
        "goal": record.goal,
        "reached": record.reached,
        "message": record.message,
        "original": network_summary(record.original),
        "compressed": network_summary(record.compressed),
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
    chosen = next(plan for plan in planning.rounds if plan.chosen)
    return {
        "latency_source": planning.latency_source,
        "original_ms": planning.original_ms,
        **chosen.model_dump(mode="json", exclude={"chosen", "damage_refitted"}),
        "damage_final": planning.damage_final,
        "plans_built": len(planning.rounds),
        "front": len(planning.front),
        "picked": planning.picked,
        "budget_check": planning.budget_check.model_dump(mode="json") if planning.budget_check else None,
    }


def network_summary(network: Network) -> dict[str, Any]:
    """The short form of one network, as `--json` prints it."""
    largest = max(network.latency, key=lambda latency: latency.batch) if network.latency else None
    return {
        "top1": network.quality.top1,
        "top1_interval": network.quality.top1_interval,
        "loss": network.quality.loss,
        "perplexity": network.quality.perplexity,
        "perplexity_interval": network.quality.perplexity_interval,
        "tokens": network.quality.tokens,
        "n": network.quality.n,
        "latency_ms": largest.median_ms if largest else None,
        "latency": [latency.model_dump(mode="json") for latency in network.latency],
        "macs": network.cost.macs,
        "params": network.cost.params,
        "blocks": network.blocks,
    }
