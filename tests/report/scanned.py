"""Realistic records of a scan, made by hand, and the odd ones."""

import math

from handmade import make_record

from shoal.record import (
    Ablation,
    Baseline,
    ChannelChangeHypothesis,
    Interval,
    ScannedBlock,
    ScannedLayer,
    ScanRecord,
    ScoreQuality,
    SecondData,
    Verdict,
)

# (drop in samples of 400, KL) of one block after another
_DAMAGE = ((120, 0.9), (0, 0.0), (3, 0.02), (0, 0.0), (14, 0.08), (0, 4e-6), (-2, 0.011), (45, 0.3), (2, 0.01))
_N = 400


def verdict_of(low: float, high: float, centre: float, tolerance: float = 0.01) -> Verdict:
    if -tolerance <= low and high <= tolerance:
        return "trivial"
    return "non-trivial" if (low > 0 or high < 0) and abs(centre) > tolerance else "undecided"


def ablation(drop: float, kl: float, **changes: object) -> Ablation:
    low, high = drop - 0.009 - 0.1 * abs(drop), drop + 0.009 + 0.1 * abs(drop)
    verdict = verdict_of(low, high, drop)
    values = {
        "n": _N,
        "loss": 0.1 + kl,
        "top1": 0.98 - drop,
        "kl": kl,
        "changed": abs(drop),
        "top1_drop": drop,
        "top1_drop_interval": (low, high),
        "loss_increase": kl,
        "loss_increase_interval": (0.7 * kl, 1.4 * kl),
        "verdict": verdict,
        "familywise": "undecided" if verdict == "trivial" else verdict,
    }
    return Ablation.model_validate({**values, **changes})


def scanned_blocks(per_stage: int = 9, shift: int = 0) -> list[ScannedBlock]:
    found = []
    for stage in (1, 2, 3):
        for index in range(per_stage):
            first = index == 0 and stage > 1
            samples, kl = _DAMAGE[(index + shift) % len(_DAMAGE)]
            one = ablation(samples / _N * (1 + 0.2 * stage), kl * stage)
            width, side = 16 * 2 ** (stage - 1), 32 // 2 ** (stage - 1)
            found.append(
                ScannedBlock(
                    path=f"stages.{stage - 1}.{index}",
                    kind="BasicBlock",
                    stage=stage,
                    shortcut="projection" if first else "identity",
                    in_shape=[width // 2, side * 2, side * 2] if first else [width, side, side],
                    out_shape=[width, side, side],
                    params=width * width * 18 + 4 * width,
                    removable=True,
                    ablations={"block": one, "mean": ablation(samples / _N / 2, kl / 2), "branch": one},
                    scores={"mean_response": 0.001 + kl, "linear_cka": 1 - kl / 10, "taylor": (-1) ** index * kl},
                )
            )
    return found


def scanned_layers(blocks: list[ScannedBlock]) -> list[ScannedLayer]:
    found = [layer("stem", None, 3, 16)]
    for block in blocks:
        entry, width = block.in_shape[0], block.out_shape[0]
        found.append(layer(f"{block.path}.conv1", block.path, entry, width))
        found.append(layer(f"{block.path}.conv2", block.path, width, width))
    return [*found, layer("head", None, 64, 10, kind="Linear")]


def layer(path: str, block: str | None, entry: int, width: int, kind: str = "Conv2d") -> ScannedLayer:
    drop = 0.4 if entry != width else 0.0 if path.endswith("1") else 0.03
    return ScannedLayer(
        path=path,
        kind=kind,
        block=block,
        in_channels=entry,
        out_channels=width,
        changes_channels=entry != width,
        params=9 * entry * width,
        ablations={"kernel": ablation(drop, 2 * drop)},
    )


def quality(name: str, rho: float | None, interval: Interval | None, high_means: str = "keep") -> ScoreQuality:
    return ScoreQuality(
        name=name,
        source="arXiv:1905.00414" if name == "linear_cka" else "a textbook",
        high_means=high_means,
        correlation=rho,
        correlation_interval=interval,
        blocks=27,
    )


def make_scan(**changes: object) -> ScanRecord:
    blocks = scanned_blocks()
    layers = scanned_layers(blocks)
    claim = ChannelChangeHypothesis(
        changing={"trivial": 0, "undecided": 0, "non-trivial": 4},
        others={"trivial": 27, "undecided": 0, "non-trivial": 25},
        p_value=0.12,
        sentence="4 of the 4 layers that change the number of channels are non-trivial, and 25 of the 52 others",
    )
    values: dict[str, object] = {
        "command": "shoal scan digits-resnet digits",
        "model": "digits-resnet",
        "data": "digits",
        "seed": 0,
        "tolerance": 0.01,
        "metric": "top1",
        "comparisons": 110,
        "baseline": Baseline(top1=0.98, top1_interval=(0.961, 0.9898), loss=0.1, n=_N, split="test"),
        "blocks": blocks,
        "layers": layers,
        "scores": [
            quality("taylor", -0.02, (-0.4, 0.37)),
            quality("mean_response", 0.97, (0.92, 0.99)),
            quality("linear_cka", 0.83, (0.6, 0.93), "remove"),
        ],
        "claim": claim,
        "notes": ["110 ablations were compared; `familywise` verdicts use Bonferroni's correction"],
        "machine": make_record().machine,
        "seconds": 8.1,
        "created": "2025-11-20T14:03:11+00:00",
    }
    return ScanRecord.model_validate({**values, **changes})


def with_second() -> ScanRecord:
    blocks = scanned_blocks(shift=2)
    baseline = Baseline(top1=0.91, top1_interval=(0.9, 0.92), loss=0.3, n=1000, split="test")
    also = SecondData(data="digits as JPEG", baseline=baseline, blocks=blocks, layers=[], differing=[])
    return make_scan(also=also, early_stopped=["block:stages.0.0", "kernel:stem"])


def without_labels() -> ScanRecord:
    """A network judged against itself: the loss is the divergence, and nothing is known of answers being right."""
    none = {"top1": None, "top1_drop": None, "top1_drop_interval": None}

    def blind(items: list) -> list:
        return [
            item.model_copy(
                update={"ablations": {name: a.model_copy(update=none) for name, a in item.ablations.items()}}
            )
            for item in items
        ]

    full = make_scan()
    baseline = Baseline(top1=None, loss=None, n=_N, split="test")
    return make_scan(metric="kl", baseline=baseline, blocks=blind(full.blocks), layers=blind(full.layers))


def plain_chain() -> ScanRecord:
    """A network without residual blocks: only layers, and no scores."""
    layers = [layer(f"features.{i}", None, 16 * (1 + i // 3), 16 * (1 + (i + 1) // 3)) for i in range(9)]
    return make_scan(blocks=[], layers=layers, scores=[])


def one_sample() -> ScanRecord:
    """A single sample has no interval of the loss, and nobody knows the correlations."""
    endless = {"n": 1, "loss_increase_interval": (-math.inf, math.inf), "verdict": "undecided"}
    blocks = [
        block.model_copy(
            update={"ablations": {name: a.model_copy(update=endless) for name, a in block.ablations.items()}}
        )
        for block in scanned_blocks()
    ]
    baseline = Baseline(top1=None, loss=0.4, n=1, split="test")
    scores = [quality("taylor", None, None), quality("mean_response", 1.0, None)]
    return make_scan(metric="loss", baseline=baseline, blocks=blocks, layers=[], claim=None, scores=scores)


def unmeasured() -> ScanRecord:
    """Blocks that could not be tried, and values that are not numbers."""
    blocks = scanned_blocks()
    broken = ablation(math.nan, math.nan, verdict="undecided", changed=math.nan, n=3)
    blocks[0] = blocks[0].model_copy(update={"ablations": {}, "scores": {}, "removable": False, "reason": "shared"})
    blocks[1] = blocks[1].model_copy(update={"ablations": {"block": broken}, "scores": {"taylor": math.nan}})
    blocks[2] = blocks[2].model_copy(update={"ablations": {"branch": ablation(0.1, 0.2)}, "removable": False})
    blocks[3] = blocks[3].model_copy(
        update={"ablations": {"block": ablation(0.1, 0.2), "unit:0": ablation(0.0, 0.0), "unit:1": ablation(0.1, 0.1)}}
    )
    return make_scan(blocks=blocks)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def evil_scan() -> ScanRecord:
    """Names that are markup, wherever a name can come from outside."""
    full = with_second()
    names = {block.path: f"{EVIL}{i}" for i, block in enumerate(full.blocks)}

    def renamed(blocks: list[ScannedBlock]) -> list[ScannedBlock]:
        return [
            block.model_copy(
                update={
                    "path": names[block.path],
                    "kind": EVIL,
                    "shortcut": EVIL,
                    "removable": False,
                    "reason": EVIL,
                    "ablations": {**block.ablations, EVIL: block.ablations["mean"]},
                    "scores": {**block.scores, EVIL: 1.0},
                }
            )
            for block in blocks
        ]

    layers = [one.model_copy(update={"path": f"{EVIL}{i}", "kind": EVIL}) for i, one in enumerate(full.layers)]
    return make_scan(
        blocks=renamed(full.blocks),
        layers=layers,
        scores=[quality(EVIL, 0.5, (0.1, 0.8)).model_copy(update={"source": f"arXiv:{EVIL}"})],
        also=full.also.model_copy(update={"data": EVIL, "blocks": renamed(full.also.blocks)}),
        claim=full.claim.model_copy(update={"sentence": EVIL}),
        early_stopped=[EVIL],
        notes=[EVIL, f"`{EVIL}`"],
        command=EVIL,
        model=EVIL,
        data=EVIL,
        created=EVIL,
    )


def long_scan() -> ScanRecord:
    """200 blocks with long names, as a deep network has them."""
    blocks = [
        block.model_copy(update={"path": f"encoder{'_very_long' * 12}.{i}"})
        for i, block in enumerate(scanned_blocks(67))
    ]
    return make_scan(blocks=blocks, layers=scanned_layers(blocks), model="x" * 200, command="shoal " + "y" * 300)


ODD = [with_second, without_labels, plain_chain, one_sample, unmeasured, evil_scan, long_scan]
