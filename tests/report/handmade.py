"""A realistic record, made by hand: 27 blocks in 3 stages, 14 removed."""

from shoal.record import (
    BlockRecord,
    Certificate,
    Comparison,
    Latency,
    Machine,
    Network,
    NetworkCost,
    Quality,
    Record,
    RemovalStep,
)

_WORTHS = (0.41, 0.0021, 0.013, 0.00034, 0.0008, 0.0, 0.00011, 0.052, 0.0043)


def make_blocks(per_stage: int = 9) -> list[BlockRecord]:
    blocks = []
    for stage in range(1, 4):
        for index in range(per_stage):
            first = index == 0 and stage > 1
            worth = None if first else _WORTHS[index % 9] * stage
            width, side = 16 * 2 ** (stage - 1), 32 // 2 ** (stage - 1)
            blocks.append(
                BlockRecord(
                    path=f"stages.{stage - 1}.{index}",
                    stage=stage,
                    kind="BasicBlock",
                    shortcut="projection" if first else "identity",
                    activation="relu",
                    in_shape=[width // 2, side * 2, side * 2] if first else [width, side, side],
                    out_shape=[width, side, side],
                    params=width * width * 18 + 4 * width,
                    removable=not first,
                    reason="the shortcut is a projection" if first else None,
                    removal_kl=worth,
                    removal_kl_interval=None if worth is None else (worth * 0.8, worth * 1.3),
                    residual_ratio=None if first else 0.05 + 0.04 * index,
                    action="removed" if worth is not None and worth < 0.00421 else "kept",
                )
            )
    return blocks


def make_steps(removed: list[str], taken_back: str | None = None) -> list[RemovalStep]:
    steps = []
    for i, path in enumerate([*removed, *([taken_back] if taken_back else [])]):
        kl = 0.0004 * (i + 1) ** 1.7
        drop = -0.0035 + 0.0006 * i
        seen = Comparison(
            split="validation",
            n=287,
            agreement=0.99 - 0.001 * i,
            agreement_interval=(0.97, 0.995),
            kl=kl,
            kl_interval=(0.8 * kl, 1.25 * kl),
            top1_drop=drop,
            top1_drop_interval=(drop - 0.012, drop + 0.013),
            p_value=1.0,
            lost=1,
            won=1,
        )
        interval = (0.8 * kl, 1.25 * kl)
        steps.append(
            RemovalStep(
                removed=path,
                kl=kl,
                kl_interval=interval,
                candidates=25 - i,
                n=1150,
                validation=seen,
                seconds=0.4,
            )
        )
    return steps


def latencies(scale: float) -> list[Latency]:
    shared = {"runs": 40, "device": "cpu", "dtype": "float32", "threads": 2, "channels_last": False}
    return [
        Latency(batch=1, median_ms=6.2 * scale, q1_ms=6.1 * scale, q3_ms=6.5 * scale, **shared),
        Latency(batch=128, median_ms=212.4 * scale, q1_ms=209.1 * scale, q3_ms=218.0 * scale, **shared),
    ]


def make_record(**changes: object) -> Record:
    blocks = make_blocks()
    removed = [block.path for block in blocks if block.action == "removed"]
    cost = NetworkCost(params=853_018, macs=125_747_840, weights_bytes=3_412_072, input_shape=[3, 32, 32])
    small = NetworkCost(params=412_330, macs=60_112_640, weights_bytes=1_649_320, input_shape=[3, 32, 32])
    before = Quality(split="test", n=400, top1=0.9875, top1_interval=(0.9711, 0.9947), loss=0.0512)
    after = Quality(split="test", n=400, top1=0.985, top1_interval=(0.9677, 0.9931), loss=0.0634)
    comparison = Comparison(
        split="test",
        n=400,
        agreement=0.99,
        agreement_interval=(0.9745, 0.9961),
        kl=0.0312,
        kl_interval=(0.0211, 0.0413),
        top1_drop=0.0025,
        top1_drop_interval=(-0.0088, 0.0140),
        p_value=1.0,
        lost=2,
        won=1,
    )
    values: dict[str, object] = {
        "command": "shoal compress digits-resnet digits --max-drop 1.0 --seed 0",
        "model": "digits-resnet",
        "data": "digits",
        "seed": 0,
        "goal": {"max_drop": 1.0},
        "reached": True,
        "message": "Lost 0.35 of at most 1.00 points on validation.",
        "original": Network(quality=before, latency=latencies(1.0), cost=cost, blocks=27),
        "compressed": Network(quality=after, latency=latencies(0.52), cost=small, blocks=27 - len(removed)),
        "comparison": comparison,
        "validation": comparison.model_copy(update={"split": "validation", "n": 287, "top1_drop": 0.0035}),
        "certificate": Certificate(
            verdict="different",
            max_abs_diff=3.127,
            where="sample 217, logit 4",
            tolerance=1.2e-4,
            n=400,
            premises=["eval mode", "batch 128 on cpu in float32"],
            bitwise=False,
            why_not_identical="blocks with non-zero branches were removed",
        ),
        "removed": removed,
        "blocks": blocks,
        "steps": make_steps(removed, taken_back="stages.0.7"),
        "machine": Machine(
            device="cpu",
            processor="Some Processor 4 GHz",
            cores=2,
            threads=2,
            system="Linux 6.1",
            python="3.11.7",
            torch="2.8.0",
            shoal="0.1.0",
            libraries={"numpy": "2.1.0", "scikit-learn": "1.5.0"},
        ),
        "warnings": ["Only 400 test images: the interval of the change is 2.3 points wide."],
        "seconds": 48.2,
        "created": "2025-11-20T14:03:11+00:00",
    }
    return Record.model_validate({**values, **changes})


def language_record(**changes: object) -> Record:
    """Of a language model: loss and perplexity over the tokens of a few sequences, and no top-1."""
    full = make_record()
    before = Quality(
        split="test",
        n=8,
        loss=3.114,
        tokens=4088,
        loss_interval=(3.01, 3.22),
        perplexity=22.51,
        perplexity_interval=(20.29, 25.03),
    )
    after = before.model_copy(
        update={
            "loss": 3.2082,
            "loss_interval": (3.09, 3.33),
            "perplexity": 24.73,
            "perplexity_interval": (21.98, 27.94),
        }
    )
    comparison = Comparison(
        split="test",
        n=8,
        agreement=0.83,
        agreement_interval=(0.49, 0.96),
        kl=0.11,
        kl_interval=(0.08, 0.14),
        loss_increase=0.0942,
        loss_increase_interval=(0.0721, 0.1163),
    )
    tokens = full.original.cost.model_copy(update={"input_shape": [512]})
    values: dict[str, object] = {
        "original": full.original.model_copy(update={"quality": before, "cost": tokens}),
        "compressed": full.compressed.model_copy(update={"quality": after}),
        "comparison": comparison,
        "validation": None,
        "steps": [],
        "command": "shoal compress hf:gpt2 text:wiki.txt --remove 14",
        "model": "hf:gpt2",
        "data": "text:wiki.txt",
    }
    return make_record(**{**values, **changes})


def bare_record() -> Record:
    """Nothing but what must be there: no labels, steps, blocks, latency, validation."""
    full = make_record()
    quality = Quality(split="test", n=400)
    original = full.original.model_copy(update={"quality": quality, "latency": [], "blocks": 0})
    unlabelled = Comparison(
        split="test", n=400, agreement=0.99, agreement_interval=(0.97, 0.99), kl=0.01, kl_interval=(0.0, 0.02)
    )
    certificate = Certificate(verdict="identical", max_abs_diff=0.0, where=None, tolerance=0.0, n=400, bitwise=True)
    return make_record(
        original=original,
        compressed=original,
        comparison=unlabelled,
        validation=None,
        certificate=certificate,
        removed=[],
        blocks=[],
        steps=[],
        warnings=[],
        goal={},
        message="",
    )
