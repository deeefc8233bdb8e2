"""Train the embedded network and write its weights: `python scripts/train_digits_resnet.py`.

Plain training on purpose: cross-entropy, SGD with momentum and weight decay, images shifted by one pixel.
Nothing asks for blocks that can be left out; that many can be is what Shoal is there to find. Only the
calibration part of the data is read for training, so that validation and test are unseen.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import sklearn
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from shoal.sources.builtin_networks import WEIGHTS, DigitsResNet
from shoal.sources.data import load_data

RECIPE = {
    "optimizer": "SGD, momentum 0.9, Nesterov",
    "learning_rate": 0.3,
    "schedule": "linear warm-up over 5 % of the steps, then cosine to 0",
    "weight_decay": 0.02,
    "batch_size": 64,
    "augmentation": "shifts by up to one pixel",
    "trained_on": "the calibration part of `digits`",
    "flushed": "parameters below 1e-9 in magnitude are written as zero",
}


def main() -> None:
    """Train, judge, write."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=80)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=WEIGHTS, help="a .safetensors file; a .json is put beside it")
    chosen = options.parse_args()
    model = trained(chosen.epochs, chosen.seed)
    flush(model)
    data = load_data("digits")
    splits = {
        "calibration": data.calibration(augment=False),
        "validation": data.validation(),
        "test": data.test(),
    }
    results = {name: accuracy(model, loader) for name, loader in splits.items()}
    record = {
        "network": "digits-resnet",
        "test_top1": results["test"]["top1"],
        "test_n": results["test"]["n"],
        "splits": results,
        "seed": chosen.seed,
        "recipe": {**RECIPE, "epochs": chosen.epochs},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": versions(),
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(chosen.out, save(state))
    write_whole(chosen.out.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(results))


def trained(epochs: int, seed: int) -> nn.Module:
    """The network after `epochs` passes over the calibration part."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # see `flush`: ten times the training time otherwise
    model = DigitsResNet()
    data = load_data("digits", batch_size=RECIPE["batch_size"], seed=seed)
    steps = epochs * len(list(data.calibration()))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=RECIPE["learning_rate"],
        momentum=0.9,
        nesterov=True,
        weight_decay=RECIPE["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    begun = time.monotonic()
    for epoch in range(1, epochs + 1):
        losses = []
        model.train()
        for x, y in data.calibration(augment=True, epoch=epoch):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.monotonic() - begun
        print(f"epoch {epoch}/{epochs}  loss {sum(losses) / len(losses):.4f}  {seconds:.0f} s", flush=True)
    return model.eval()


def rate(step: int, steps: int) -> float:
    """The learning rate at a step, as a fraction of the highest."""
    warm_up = max(1, steps // 20)
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def flush(model: nn.Module) -> None:
    """Write parameters that weight decay has made vanishingly small as zero.

    Weights of 1e-15 change no output, but their products are denormal numbers, which many processors handle
    in slow motion: the network would take three times as long, and leaving such blocks out would look like a
    gain in speed that it is not.
    """
    for parameter in model.parameters():
        parameter[parameter.abs() < 1e-9] = 0
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer[buffer.abs() < torch.finfo(buffer.dtype).tiny] = 0


@torch.no_grad()
def accuracy(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Top-1 as a fraction, and the number of images it was counted on."""
    hits = [(model(x).argmax(dim=1) == y) for x, y in loader]
    right = torch.cat(hits)
    return {"top1": round(right.float().mean().item(), 6), "n": len(right)}


def versions() -> dict[str, str]:
    """What the weights were made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "scikit-learn": sklearn.__version__,
        "safetensors": safetensors.__version__,
    }


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


if __name__ == "__main__":
    main()
