"""A trained network loses blocks: by gates while it learns from itself, or by `compress` and recovery?

    python benchmarks/epsilon_tuning.py MODEL DATA [--weights F] [--mean ..] [--std ..] --work FOLDER --out NAME.json
        [--lose 0.3 0.5] [--epochs 20] [--batch-size 128] [--methods compress,remove] [--seed 0]

For each share, `shoal train MODEL DATA --teacher MODEL --lose SHARE` comes first; the latency of what it leaves, as a
share of the original's, is then the budget of the others, which recover for as many steps on the same images:

    compress  blocks kept, removed or replaced under that latency
    remove    as many blocks removed as were lost, chosen by measured damage

Test is only measured on. Finished networks are kept in --work, the same command goes on from there.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import shoal
from shoal.batches import batches
from shoal.epsilon.finish import TrainRunInfo, finish
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer, with_overrides
from shoal.files.writing import write_text
from shoal.measure import compare, cost, latency_beside, machine, paired_predictions
from shoal.pipeline import Budget, Goal, RecoveryConfig, RemoveBlocks
from shoal.sources import Data, load_data, load_model


def main() -> None:
    """Run what is missing, print, write down."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    data = load_data(args.data, mean=args.mean, std=args.std, seed=args.seed, batch_size=args.batch_size)
    original = load_model(args.model, args.weights).model.eval()
    rows = []
    for share in args.lose:
        folder = args.work / f"lose-{share:g}"
        folder.mkdir(exist_ok=True)
        tuned = kept(folder / "epsilon.json", lambda share=share: by_gates(original, data, share, args))
        rows.append(tuned)
        for method in args.methods.split(","):
            goal: Goal = RemoveBlocks(tuned["lost"]) if method == "remove" else Budget(latency=tuned["latency"])
            rows.append(
                kept(folder / f"{method}.json", lambda g=goal, m=method, t=tuned: by_plan(original, data, g, m, t))
            )
    for entry in rows:
        print(json.dumps(entry), flush=True)
    document = {
        "model": Path(args.model).name,
        "data": Path(args.data).name,
        "epochs": args.epochs,
        "seed": args.seed,
        "rows": rows,
        "machine": machine("cpu").model_dump(mode="json"),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(document, indent=1) + "\n")


def kept(path: Path, run: Any) -> dict[str, Any]:
    """What a run found, from its file or anew."""
    if not path.exists():
        write_text(path, json.dumps(run()))
    return json.loads(path.read_text(encoding="utf-8"))


def by_gates(original: nn.Module, data: Data, share: float, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tuning with gates."""
    started = time.perf_counter()
    config = EpsilonConfig.fine_tuning(data.spec, args.epochs, lose=share, seed=args.seed)
    plan = with_overrides(config.recipe, batch_size=args.batch_size, evaluate_every=10_000)
    config = EpsilonConfig(plan, "auto", lose=share, side=False, freeze_after=1, seed=args.seed)
    run = EpsilonTrainer(original, data, config, teacher=original)
    run.train()
    result = finish(run, TrainRunInfo(), seconds=0.01)
    found = {"method": "epsilon", "share": share, "lost": len(result.plan.removed), "steps": run.state.step}
    found |= {"blocks": len(run.prunable.graph.chain), "removed": result.plan.removed}
    return found | measured(original, result.model, data) | {"seconds": time.perf_counter() - started}


def by_plan(original: nn.Module, data: Data, goal: Goal, method: str, tuned: dict[str, Any]) -> dict[str, Any]:
    """`compress` with recovery for as many steps."""
    started = time.perf_counter()
    result = shoal.compress(
        original,
        data.calibration(),
        goal,
        validation=data.validation(),
        test=data.validation(),
        recovery=RecoveryConfig(tuned["steps"], training=lambda epoch: data.calibration(augment=True, epoch=epoch)),
    )
    found = {"method": method, "share": tuned["share"], "steps": tuned["steps"], "goal_reached": result.record.reached}
    found |= {"removed": result.plan.removed, "actions": len(result.plan.actions)}
    return found | measured(original, result.model, data) | {"seconds": time.perf_counter() - started}


def measured(original: nn.Module, network: nn.Module, data: Data) -> dict[str, Any]:
    """Drop and divergence on test against the original, latency and MACs as shares of it."""
    before, after = paired_predictions([original, network.eval()], data.test())
    comparison = compare(before, after, "test")
    batch = next(batches(data.test()))
    timed = latency_beside({"original": original, "network": network}, batch, reference="original", seconds=2.0)
    top1 = float((after.log_probs.argmax(dim=1) == after.target).double().mean())
    sizes = [cost(model, batch.take(1)).macs for model in (original, network)]
    return {
        "top1": top1,
        "n": comparison.n,
        "drop": comparison.top1_drop,
        "drop_interval": comparison.top1_drop_interval,
        "kl": comparison.kl,
        "kl_interval": comparison.kl_interval,
        "latency": timed["network"].median_ms / timed["original"].median_ms,
        "macs": sizes[1] / sizes[0],
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mean", type=float, nargs="+")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--lose", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--methods", default="compress,remove")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


if __name__ == "__main__":
    main()
