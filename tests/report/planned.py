"""A record of a planned compression, made by hand: 24 plans on the front, 3 of them built."""

from handmade import make_blocks, make_record

from shoal.record import BlockRecord, FrontPoint, Planning, PlanRound, Record

ORIGINAL_MS = 106.3


def make_point(blocks: list[BlockRecord], number: int, total: int) -> FrontPoint:
    """The further towards the fast end, the more is removed, and the longer the spans that are replaced."""
    paths, zeal = [block.path for block in blocks], 1 - number / total
    third = len(paths) // 3
    removed = [path for i, path in enumerate(paths[1:third]) if i % 9 < round(7 * zeal)]
    length = round(6 * zeal)
    spans = [paths[third + 2 : third + 2 + length], paths[2 * third + 1 : 2 * third + 1 + length // 2]]
    replaced = [span for span in spans if span]
    left = len(paths) - len(removed) - sum(len(span) for span in replaced) + len(replaced)
    share = 0.31 + 0.65 * (number / total) ** 1.2
    return FrontPoint(
        latency_ms=ORIGINAL_MS * share,
        damage=0.0 if number == total else 1.4 * zeal**2.6,
        macs=int(125_747_840 * share),
        params=int(853_018 * (0.2 + 0.8 * share)),
        removed=removed,
        replaced=replaced,
        kinds=["conv3", "conv1"][: len(replaced)],
        depth=left,
    )


def make_planning(blocks: list[BlockRecord], **changes: object) -> Planning:
    chosen = make_point(blocks, 8, 24)
    rounds = [
        PlanRound(
            latency_guessed_ms=chosen.latency_ms - 4.0,
            latency_measured_ms=chosen.latency_ms + 3.1,
            damage_guessed=chosen.damage * 1.4,
            damage_measured=chosen.damage * 1.9,
        ),
        PlanRound(
            latency_guessed_ms=chosen.latency_ms,
            latency_measured_ms=chosen.latency_ms * 1.017,
            damage_guessed=chosen.damage,
            damage_measured=chosen.damage * 1.25,
            chosen=True,
        ),
    ]
    values: dict[str, object] = {
        "original_ms": ORIGINAL_MS,
        "latency_source": "measured",
        "candidates": 312,
        "rounds": rounds,
        "damage_refitted": chosen.damage * 0.5,
        "damage_final": chosen.damage * 0.45,
        "front": [make_point(blocks, number, 24) for number in range(1, 25)],
    }
    return Planning.model_validate({**values, **changes})


def planned_record(per_stage: int = 9, **changes: object) -> Record:
    """A record of the eighth plan."""
    blocks = make_blocks(per_stage)
    planning = make_planning(blocks, **changes)
    made = make_point(blocks, 8, 24)
    replaced = {path for span in made.replaced for path in span}
    actions = {**dict.fromkeys(made.removed, "removed"), **dict.fromkeys(replaced, "replaced")}
    return make_record(
        planning=planning,
        blocks=[block.model_copy(update={"action": actions.get(block.path, "kept")}) for block in blocks],
        removed=made.removed,
        replaced=[" + ".join(span) for span in made.replaced],
        steps=[],
        goal={"latency": 0.5},
        command="shoal compress digits-resnet digits --latency 0.5 --seed 0",
        message="8 blocks removed, 5 blocks replaced by 2 stand-ins; 49.9 % of the original's latency",
    )
