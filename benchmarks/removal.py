"""Remove blocks one by one and write down what each removal does: top-1, KL, latency, certificate, save and load.

    python benchmarks/removal.py MODEL DATA [--weights F] [--mean ..] [--std ..] --remove 8 --out NAME.json

The order is that of one greedy run; every prefix of it is cut, certified, timed beside the original, saved and loaded.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rivals.command_line import data_of, network_parser

from shoal.files.writing import write_text
from shoal.measure import compare, cost, latency, machine, paired_predictions, quality
from shoal.pipeline import Blocks, CompressConfig, RemoveBlocks, RunInfo, compress
from shoal.preserve import evaluating
from shoal.sources import load_model
from shoal.store import load
from shoal.surgery import certify


def main() -> None:
    """Read the command line, run, print a table, keep the figures."""
    args = _arguments()
    loaded = load_model(args.model, args.weights)
    data = data_of(args, args.data)
    origin = RunInfo(model=loaded.spec, data=data.spec, command="benchmarks/removal.py")
    greedy = compress(
        loaded.model,
        data.calibration(),
        RemoveBlocks(args.remove),
        validation=data.validation(augment=True),
        test=data.test(),
        config=CompressConfig(run_info=origin),
    )
    order = [step.removed for step in greedy.record.steps]
    rows = [_row(loaded.model, data, order[:count], origin) for count in range(1, len(order) + 1)]
    document = {
        "command": f"python benchmarks/removal.py ... --remove {args.remove} --batch-size {args.batch_size}",
        "data": data.describe() | {"spec": Path(data.spec).name},
        "original": greedy.record.original.model_dump(mode="json"),
        "steps": rows,
        "machine": machine("cpu").model_dump(mode="json"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['blocks_removed']} {row['removed']:<12} top1 {100 * row['top1']:.2f} % "
            f"drop {100 * row['top1_drop']:+.2f} [{100 * row['interval'][0]:+.2f}, {100 * row['interval'][1]:+.2f}] "
            f"KL {row['kl']:.4f} {row['latency_ms']:.1f} ms of {row['original_latency_ms']:.1f} ms "
            f"{row['certificate']} loaded bitwise: {row['loaded_bitwise']}"
        )


def _row(model: torch.nn.Module, data: object, paths: list[str], origin: RunInfo) -> dict[str, object]:
    result = compress(
        model,
        data.calibration(limit=64),
        Blocks(paths),
        validation=data.validation(limit=64),
        test=data.test(),
        config=CompressConfig(run_info=origin),
    )
    before, after = paired_predictions([model, result.model], data.test())
    comparison = compare(before, after, "test")
    batch = data.example(128)
    times = latency({"original": model, "compressed": result.model}, batch, min_seconds=4.0)
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "out")
        again = load(Path(folder) / "out")
        with evaluating(again), evaluating(result.model):
            bitwise = torch.equal(again(*batch.args), result.model(*batch.args))
    return {
        "blocks_removed": len(paths),
        "removed": paths[-1],
        "top1": quality(after, "test").top1,
        "n": comparison.n,
        "top1_drop": comparison.top1_drop,
        "interval": comparison.top1_drop_interval,
        "kl": comparison.kl,
        "latency_ms": times["compressed"].median_ms,
        "latency_quartiles": [times["compressed"].q1_ms, times["compressed"].q3_ms],
        "original_latency_ms": times["original"].median_ms,
        "macs": cost(result.model, batch.take(1)).macs,
        "certificate": certify(model, result.model, data.test()).verdict,
        "loaded_bitwise": bitwise,
    }


def _arguments() -> argparse.Namespace:
    parser = network_parser(__doc__)
    parser.add_argument("--remove", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
