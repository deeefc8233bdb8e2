"""Why it is easy for a residual block to do nothing, and hard for a plain layer: five small experiments.

    python examples/why_identity_is_easy.py [--out FOLDER] [--quick]

Under three minutes of one core. It prints what it finds and writes `figures.json` and `figures.svg` into the folder.
The page that goes with it is docs/why-identity-is-easy.md.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from shoal.sources import load_data

WIDTH = 16
DEPTHS = (1, 2, 4, 8, 16, 32)
SEEDS = (0, 1, 2)


class PlainLayer(nn.Module):
    """x -> relu(W x + b)."""

    def __init__(self, width: int, norm: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm: nn.Module = nn.BatchNorm1d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return F.relu(self.norm(self.linear(x)))


class ResidualLayer(PlainLayer):
    """x -> x + W relu(x) + b: as many weights as the plain layer."""

    def branch(self, x: Tensor) -> Tensor:
        """What is added."""
        return self.linear(F.relu(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return x + self.branch(x)


def stack(kind: type[PlainLayer], depth: int, width: int = WIDTH, norm: bool = False) -> nn.Sequential:
    """So many layers."""
    return nn.Sequential(*(kind(width, norm) for _ in range(depth)))


KINDS = {"plain": PlainLayer, "residual": ResidualLayer}


def learn_identity(steps: int) -> dict[str, dict[int, float]]:
    """Taught f(x) = x with a linear layer in front and behind: the error left, over the variance of x, by depth."""
    found: dict[str, dict[int, float]] = {name: {} for name in KINDS}
    for name, kind in KINDS.items():
        for depth in DEPTHS:
            errors = []
            for seed in SEEDS:
                torch.manual_seed(seed)
                model = nn.Sequential(nn.Linear(WIDTH, WIDTH), stack(kind, depth), nn.Linear(WIDTH, WIDTH))
                optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
                for _ in range(steps):
                    x = torch.randn(256, WIDTH)
                    loss = F.mse_loss(model(x), x)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                with torch.no_grad():
                    x = torch.randn(4096, WIDTH)
                    errors.append(float(F.mse_loss(model(x), x)))
            found[name][depth] = median(errors)
    return found


def classifier(kind: type[PlainLayer], depth: int, width: int = 32) -> nn.Sequential:
    """Digits as 64 numbers in, ten logits out, with batch norm in every layer."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        stack(kind, depth, width, norm=True),
        nn.BatchNorm1d(width),
        nn.Linear(width, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    """The training images of the embedded digits, and their labels."""
    batches = list(load_data("digits").calibration(augment=False))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def train_classifier(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, decay: float = 0.0, rate: float = 0.05
) -> None:
    """Stochastic gradient descent with momentum."""
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def training_error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of wrong answers on what it was trained on."""
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) != y).float().mean())


def degradation(epochs: int) -> dict[str, dict[int, float]]:
    """Training error on the digits by depth: not overfitting, but failing to fit."""
    x, y = digits()
    found: dict[str, dict[int, float]] = {name: {} for name in KINDS}
    for name, kind in KINDS.items():
        for depth in DEPTHS:
            errors = []
            for seed in SEEDS:
                torch.manual_seed(seed)
                model = classifier(kind, depth)
                train_classifier(model, x, y, epochs)
                errors.append(training_error(model, x, y))
            found[name][depth] = median(errors)
    return found


def gradients() -> dict[str, dict[int, float]]:
    """Before training: the gradient that reaches the first layer over that of the last, by depth."""
    found: dict[str, dict[int, float]] = {name: {} for name in KINDS}
    for name, kind in KINDS.items():
        for depth in DEPTHS[1:]:
            ratios = []
            for seed in range(10):
                torch.manual_seed(seed)
                layers = stack(kind, depth, 32)
                out = layers(torch.randn(256, 32))
                (out * torch.randn_like(out)).sum().backward()
                norms = [layer.linear.weight.grad.norm() for layer in layers]
                ratios.append(float(norms[0] / norms[-1]))
            found[name][depth] = median(ratios)
    return found


def idle_branch(steps: int) -> dict[str, list[dict[str, float]]]:
    """A stack that fits its task, and then only has to keep fitting it: what decay does to the branches.

    The target is the input itself, so no branch is needed; they begin large. Sensitivity is the mean length of what a
    branch makes of a small random change of its input, over the length of that change.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for decay in (0.0, 1e-3):
        torch.manual_seed(0)
        layers = stack(ResidualLayer, 8)
        optimiser = torch.optim.SGD(layers.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
        rows = []
        for step in range(steps + 1):
            x = torch.randn(256, WIDTH)
            loss = F.mse_loss(layers(x), x)
            if step % (steps // 10) == 0:
                weight = sum(float(layer.linear.weight.detach().norm()) for layer in layers) / len(layers)
                rows.append({"step": step, "loss": loss.item(), "weight": weight, "sensitivity": sensitivity(layers)})
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found[f"decay {decay:g}"] = rows
    return found


def dead_branch(steps: int) -> dict[str, list[dict[str, float]]]:
    """A branch that gets no gradient at all, as behind a closed gate: only decay acts on it."""
    found: dict[str, list[dict[str, float]]] = {}
    for decay in (0.0, 1e-3):
        torch.manual_seed(0)
        layer = ResidualLayer(WIDTH)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
        rows = []
        for step in range(steps + 1):
            if step % (steps // 10) == 0:
                weight = float(layer.linear.weight.detach().norm())
                rows.append({"step": step, "weight": weight, "sensitivity": sensitivity(nn.Sequential(layer))})
            optimiser.zero_grad()
            (0 * layer.branch(torch.randn(16, WIDTH)).sum()).backward()
            optimiser.step()
        found[f"decay {decay:g}"] = rows
    return found


@torch.no_grad()
def sensitivity(layers: nn.Sequential) -> float:
    """How much the branches make of a small change of their input, on average."""
    x = torch.randn(512, WIDTH)
    change = 1e-3 * torch.randn_like(x)
    ratios = []
    for layer in layers:
        answer = layer.branch(x + change) - layer.branch(x)
        ratios.append(float(answer.norm(dim=1).mean() / change.norm(dim=1).mean()))
        x = layer(x)
    return sum(ratios) / len(ratios)


def added_layers(epochs: int) -> dict[str, list[float]]:
    """Training error before eight layers are added to a trained network, right after, and after the training goes on.

    The new residual layers begin with a last weight of zero, so they add nothing; the new plain layers begin as layers
    usually do, since there is no setting of relu(W x + b) that anyone would start from and that passes on all of x.
    """
    x, y = digits()
    found = {}
    for name, kind in KINDS.items():
        rows = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = classifier(kind, 4)
            train_classifier(model, x, y, epochs)
            errors = [training_error(model, x, y)]
            fresh = stack(kind, 8, 32, norm=True)
            if kind is ResidualLayer:
                for layer in fresh:
                    nn.init.zeros_(layer.linear.weight)
                    nn.init.zeros_(layer.linear.bias)
            model[2] = nn.Sequential(*model[2], *fresh)
            errors.append(training_error(model, x, y))
            train_classifier(model, x, y, epochs)
            errors.append(training_error(model, x, y))
            rows.append(errors)
        found[name] = [median(column) for column in zip(*rows, strict=True)]
    return found


# The picture


def picture(found: dict[str, dict[str, dict[int, float]]]) -> str:
    """Three plots of values by depth next to each other, on white, so that they can be read on any page."""
    titles = {
        "identity": "Taught f(x) = x: error left",
        "degradation": "Digits: training error",
        "gradients": "First over last gradient",
    }
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "why", "font.size": 8}):
        figure = Figure(figsize=(10.3, 3.0), layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
            for (name, line), colour in zip(found[key].items(), ("#b0471f", "#0b6b78"), strict=True):
                axes.plot(list(line), list(line.values()), label=name, color=colour)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(list(line), [str(depth) for depth in line])
            axes.set(title=title, xlabel="layers")
            axes.grid(axis="y", color="#ddd")
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": "Plain and residual stacks by depth"})
    return buffer.getvalue()


def main() -> None:
    """Run all five, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("why-identity-is-easy"))
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()
    steps, epochs = (20, 1) if args.quick else (2000, 30)
    experiments: dict[str, Callable[[], object]] = {
        "identity": lambda: learn_identity(steps),
        "degradation": lambda: degradation(epochs),
        "gradients": gradients,
        "idle": lambda: idle_branch(steps),
        "dead": lambda: dead_branch(steps),
        "added": lambda: added_layers(epochs),
    }
    found: dict[str, object] = {}
    for name, experiment in experiments.items():
        started = time.perf_counter()
        found[name] = experiment()
        print(f"{name} ({time.perf_counter() - started:.0f} s)\n{json.dumps(found[name], indent=1)}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "figures.svg").write_text(picture(found) + "\n", encoding="utf-8")  # type: ignore[arg-type]
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
