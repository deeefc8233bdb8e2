"""A training run made by hand: six blocks, of which two were lost."""

from handmade import latencies

from shoal.record import BlockRecord, Certificate, Comparison, Machine, Network, NetworkCost, Quality
from shoal.training_record import BaselineRun, EpochRow, FinalNetworks, LiveGates, PrunedBlock, TrainRecord

PATHS = [f"stages.{stage}.{number}" for stage in range(2) for number in range(3)]
GONE = {"stages.1.2": 2, "stages.0.1": 3}


def make_rows(epochs: int = 4) -> list[EpochRow]:
    """Epochs of which the second and third lose a block."""
    found = []
    for epoch in range(1, epochs + 1):
        alive = [path for path in PATHS if GONE.get(path, 99) >= epoch]
        largest = {path: 0.5 if path in GONE else 3.0 + 4 * index for index, path in enumerate(alive)}
        found.append(
            EpochRow(
                epoch=epoch,
                rate=0.1 / epoch,
                decay=0.01,
                epsilon=2.0,
                loss=1 / epoch,
                train_error=0.5 / epoch,
                test_error=0.4 / epoch if epoch % 2 == 0 else None,
                alive=len(alive),
                closed=[path for path in alive if path in GONE],
                taken_out=[path for path in alive if GONE.get(path) == epoch],
                lost=epoch in (2, 3),
                shares={path: float(path not in GONE) for path in alive},
                largest=largest,
                means={path: value / 4 for path, value in largest.items()},
                seconds=2.0 / epoch,
            )
        )
    return found


def make_network(top1: float, params: int, macs: int, blocks: int, scale: float) -> Network:
    """One side of the comparison."""
    return Network(
        quality=Quality(split="test", n=400, top1=top1, top1_interval=(top1 - 0.02, top1 + 0.01), loss=0.1),
        latency=latencies(scale),
        cost=NetworkCost(params=params, macs=macs, weights_bytes=4 * params, input_shape=[1, 8, 8]),
        blocks=blocks,
    )


def make_training(**changes: object) -> TrainRecord:
    """A whole record; `changes` replace its fields."""
    same = Comparison(split="test", n=400, agreement=1.0, agreement_interval=(0.99, 1.0), kl=0.0, kl_interval=(0, 0))
    plain = make_network(0.975, 60_000, 700_000, 4, 2.0)
    fields: dict[str, object] = {
        "command": "shoal train",
        "model": "digits-resnet",
        "data": "digits",
        "seed": 0,
        "recipe": "digits",
        "settings": {"epsilon": 2.0, "freeze_after": 5, "side": True},
        "samples": 1000,
        "steps": 40,
        "blocks": [make_block(path) for path in PATHS],
        "gated": 6,
        "rows": make_rows(),
        "lost": [make_lost(path, epoch) for path, epoch in GONE.items()],
        "settled": FinalNetworks(
            whole=make_network(0.975, 90_000, 1_000_000, 6, 3.0),
            plain=plain,
            comparison=same,
            certificate=Certificate(
                verdict="identical",
                max_abs_diff=0.0,
                where=None,
                tolerance=1e-5,
                n=400,
                premises=["zero"],
                bitwise=True,
            ),
            live=LiveGates(
                quality=plain.quality, comparison=same, batches=4, batch_size=128, batches_with_an_opening=3
            ),
        ),
        "machine": Machine(
            device="cpu", processor="x", cores=2, threads=2, system="Linux", python="3.12", torch="2.9", shoal="0.1"
        ),
        "warnings": ["2 of 2 lost blocks were frozen before <their> weights had died"],
        "seconds": 12.5,
        "created": "2026-01-02T03:04:05+00:00",
    }
    return TrainRecord.model_validate(fields | changes)


def make_block(path: str) -> BlockRecord:
    """One block of the chain."""
    return BlockRecord(
        path=path,
        stage=1 + int(path.split(".")[1]),
        kind="Block",
        shortcut="identity",
        activation=None,
        in_shape=[8, 8, 8],
        out_shape=[8, 8, 8],
        params=10_000,
        removable=True,
        action="removed" if path in GONE else "kept",
    )


def make_lost(path: str, epoch: int) -> PrunedBlock:
    """One lost block."""
    return PrunedBlock(
        path=path,
        stage=1 + int(path.split(".")[1]),
        epoch=epoch,
        at_end=False,
        largest=0.5,
        weight_before=0.2,
        weight_left=0.05,
        opens_on_test=0.25,
        largest_on_test=2.5,
    )


def make_beside(name: str, epsilon: float, lost: int) -> BaselineRun:
    """Another run of the same epochs."""
    return BaselineRun(
        name=name,
        epsilon=epsilon,
        side=True,
        lost=lost,
        quality=Quality(split="test", n=400, top1=0.985, top1_interval=(0.97, 0.99)),
        comparison=Comparison(
            split="test",
            n=400,
            agreement=0.97,
            agreement_interval=(0.95, 0.98),
            kl=0.1,
            kl_interval=(0.05, 0.15),
            top1_drop=0.01,
            top1_drop_interval=(-0.01, 0.03),
            lost=8,
            won=4,
        ),
    )
