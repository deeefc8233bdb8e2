"""Narrower instead of shallower: pruning of the channels inside the residual blocks, by magnitude or by Taylor.

Source: Fang et al. 2023, DepGraph, arXiv:2301.12900, by its own package `torch-pruning`: group magnitude (L2) or group
Taylor (Molchanov et al. 2019, arXiv:1906.10771; gradients of the cross-entropy with the original's own answers, over
all images that others fit on), in the package's default normalisation, ranked over all layers at once. The stream keeps
its width, because a channel of it runs through a whole stage and cannot go without training. Batch norms stay and are
recalibrated where that helps.

Widths are rounded to multiples, which CPUs like: both 4 and 8 are searched, and of those that meet the target the one
with the lower held-back KL is kept.
"""

import copy
from dataclasses import dataclass, field
from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from rivals.ground import SLACK, Ground
from rivals.made import Made, Unreached
from rivals.norms import with_better_norms
from shoal.batches import Batch, call, logits_of
from shoal.errors import SurgeryError, UsageError
from shoal.preserve import evaluating

_ROUNDINGS = (4, 8)
_HALVINGS = 7
_SECONDS = 2.0
_MOST = 0.99  # of the channels: one rounding step stays in each layer

Slopes = dict[str, Tensor] | None


def width(ground: Ground, target: float) -> Made:
    """The network pruned by magnitude just so much that it meets `target`, by bisection on the measured latency."""
    return _better(ground, target, None)


def taylor(ground: Ground, target: float) -> Made:
    """Likewise by Taylor."""
    return _better(ground, target, gradients(ground))


def gradients(ground: Ground) -> dict[str, Tensor]:
    """Of the cross-entropy with what the original itself says, by parameter, summed over images."""
    network = copy.deepcopy(ground.model).eval().requires_grad_(requires_grad=True)
    ground.progress("gradients of the original", 0, 1)
    for batch in ground.fit_on:
        logits = logits_of(call(network, batch))
        F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum").backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def _better(ground: Ground, target: float, slopes: Slopes) -> Made:
    searches = [_Search(ground, round_to, slopes) for round_to in _ROUNDINGS]
    networks = [made for search in searches if (made := search.least(target)) is not None]
    if not networks:
        fastest = min(search.fastest for search in searches)
        raise Unreached(fastest, "one rounding step of channels in every inner layer is still too slow")
    return min(networks, key=_held_back)


def _held_back(made: Made) -> float:
    norms = made.done["batch_norms"]
    return min(norms["held_back_kl"], norms["held_back_kl_recalibrated"])


@dataclass
class _Search:
    """One bisection; networks of the same shape are timed once."""

    ground: Ground
    round_to: int
    slopes: Slopes = None
    known: dict[str, float] = field(default_factory=dict)

    def least(self, target: float) -> Made | None:
        """The least pruned network that meets the target; None where even the most pruned one does not."""
        low, high, best = 0.0, _MOST, None
        if self._share(self._pruned(_MOST)) > target * SLACK:
            return None
        for number in range(_HALVINGS + 1):
            self.ground.progress(f"pruning widths to multiples of {self.round_to}", number, _HALVINGS)
            ratio = high if best is None else (low + high) / 2
            network = self._pruned(ratio)
            if best is None or self._share(network) <= target * SLACK:
                high, best = ratio, network
            else:
                low = ratio
        calibrated, norms = with_better_norms(self.ground, best)
        widths = {path: len(best.get_submodule(path).weight) for path in inner_layers(self.ground)}
        done = {"pruning_ratio": high, "round_to": self.round_to, "widths": widths, "batch_norms": norms}
        return Made(calibrated, done)

    @property
    def fastest(self) -> float:
        """The smallest share seen."""
        return min(self.known.values(), default=1.0)

    def _pruned(self, ratio: float) -> nn.Module:
        return pruned(self.ground, ratio, self.round_to, self.slopes)

    def _share(self, network: nn.Module) -> float:
        shape = ",".join(str(tuple(parameter.shape)) for parameter in network.parameters())
        if shape not in self.known:
            self.known[shape] = self.ground.share(network, _SECONDS)
        return self.known[shape]


def inner_layers(ground: Ground) -> list[str]:
    """The layers whose outputs stay inside a branch: all of a branch but the last, which writes to the stream."""
    model, inner = ground.graph.model, []
    for block in ground.graph.chain:
        for unit in block.units:
            layers = [path for path in unit.branch if isinstance(model.get_submodule(path), nn.Conv2d | nn.Linear)]
            inner.extend(layers[:-1])
    return list(dict.fromkeys(inner))


def pruned(ground: Ground, ratio: float, round_to: int, slopes: Slopes = None) -> nn.Module:
    """A copy of the original with this share of its inner channels gone: by Taylor where there are gradients.

    Raises:
        UsageError: torch-pruning is not installed.
        SurgeryError: a layer outside of the branches changed, or the network does not run.
    """
    pruning, inner = _package(), set(inner_layers(ground))
    network = copy.deepcopy(ground.model).eval()
    for name, parameter in network.named_parameters():
        parameter.grad = slopes[name].clone() if slopes and name in slopes else None
    importance = pruning.importance.GroupTaylorImportance() if slopes else pruning.importance.MagnitudeImportance(p=2)
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    others = [
        module
        for path, module in network.named_modules()
        if path not in inner and isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    example = ground.timed.take(2)
    pruner = pruning.pruner.MetaPruner(
        network,
        example.kwargs or example.args,
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=others,
        round_to=round_to,
        # Its defaults are dictionaries shared by all pruners, which would keep every network alive.
        in_channel_groups={},
        out_channel_groups={},
    )
    # Rounded down to nothing, the package would leave a layer whole: one rounding step stays instead.
    pruner._round_to = _rounded
    pruner.step()
    network.zero_grad(set_to_none=True)
    _check(network, before, others, example)
    return network


def _rounded(removed: int, channels: int, round_to: int) -> int:
    """How many channels are removed, so that a multiple of `round_to` stays, at least one."""
    left = max((channels - removed) // round_to * round_to, min(round_to, channels))
    return channels - left


def _check(network: nn.Module, before: dict, others: list[nn.Module], example: Batch) -> None:
    """The stream is as wide as it was: no layer that writes to it lost an output."""
    for path, module in network.named_modules():
        if module in others and module.weight.shape[0] != before[f"{path}.weight"][0]:
            raise SurgeryError(f"torch-pruning changed the width of '{path}', which writes to the stream")
    with evaluating(network):
        call(network, example)


def _package() -> ModuleType:
    try:
        import torch_pruning
    except ImportError as error:
        raise UsageError("the method 'width' needs torch-pruning", "pip install torch-pruning") from error
    return torch_pruning
