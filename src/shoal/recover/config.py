"""How to distil."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shoal.arguments import flag, real_number, whole_number
from shoal.errors import UsageError

# What served best of those tried with each optimizer: docs/figures.md.
_SIGMAS = {"denoising": 2.0}
_FEATURES = {"sgd": 64.0, "adamw": 4.0}


@dataclass(frozen=True)
class DistillConfig:
    """How the student learns from the teacher.

    Args:
        seed: of blends, and of what the network and its data draw themselves.
        rate: the highest learning rate; None: found by a short test on copies.
        optimizer: 'sgd' (momentum 0.9, Nesterov), 'adamw', or 'auto': SGD for a student with batch norms or
            convolutions, AdamW for any other.
        warm_up: the share of the budget in which the rate rises.
        clip: a gradient is limited to so many times the size of its weights; 0 for no limit.
        features: weight of the features' error, relative to their variance, beside the divergence in nats; None: 64
            where SGD is used, 4 with AdamW (measured on ResNet-56 and on a small Llama, docs/figures.md).
        labels: weight of the cross-entropy with the labels; 0 needs none.
        sigmas: features that the teacher has farther than so many standard deviations from their mean do not count; 0:
            all count; None: 2 for the denoising networks of diffusion models, whose largest activations would be all
            of the error, and 0 for any other.
        temperature: of both networks' answers in the loss.
        blends: the share of samples that are blended with another of their mini-batch.
        unlabelled_share: the share of steps on unlabelled extra data, where it was given.
        norm_batch: batch norms learn their statistics only in mini-batches of at least so many samples.
        validation_images: how many samples the student is judged on, at most.
        looks: how often it is judged, evenly over the budget.
        patience: it stops after so many looks in a row that are no better than one before them.
        decay: weight decay of the matrices.
        precision: 'fp32', or 'bf16' for mixed precision.
        channels_last: keep images with the channels last in memory while it learns; None: where that is faster, for
            networks with dense convolutions on a CPU. What comes out has the layout it had.
        lora: the rank of low-rank adapters, by which alone a network of transformers learns (stand-ins learn whole);
            they are merged at the end. 0: all weights learn.
        accumulate: gradients of so many parts of a mini-batch are added up before a step: less memory, the same step
            but for batch norms, which see the parts.
        shard: divide the weights of student, teacher and average over the processes (FSDP2), for networks of which one
            device does not hold them all; needs several processes. The rate is then not searched for, and batch norms
            are not recalibrated.
        cache_teacher: keep so many of the teacher's largest scores of each sample or position on disk, for all steps of
            the budget, before the first one; then the teacher leaves the device. For networks that do not fit beside
            each other. Its features are not compared then, and the record says what the other scores would have
            told. 0: the teacher runs in each step.
        checkpointing: blocks are computed once more in the backward pass instead of being kept: less memory, the same
            gradients, steps that take about a third longer.
        device: where it runs; by default where the student is. No checkpoint or record depends on it.
    """

    seed: int = 0
    rate: float | None = None
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    warm_up: float = 0.05
    clip: float = 0.02
    features: float | None = None
    labels: float = 0.0
    sigmas: float | None = None
    temperature: float = 1.0
    blends: float = 0.5
    unlabelled_share: float = 0.5
    norm_batch: int = 16
    validation_images: int = 512
    looks: int = 20
    patience: int = 10
    decay: float = 1e-4
    precision: str = "fp32"
    channels_last: bool | None = None
    lora: int = 0
    accumulate: int = 1
    shard: bool = False
    cache_teacher: int = 0
    checkpointing: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"the precision is '{self.precision}', expected fp32 or bf16", "Leave it out for fp32.")
        if self.optimizer not in ("auto", "sgd", "adamw"):
            raise UsageError(f"the optimizer is '{self.optimizer}', expected auto, sgd or adamw", "Leave it out.")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= self._number(name, value) <= high:
                raise UsageError(f"{name} is {value}, expected a number from {low:g} to {high:g}", "Leave it out.")
        for name in ("shard", "checkpointing", *(("channels_last",) if self.channels_last is not None else ())):
            flag(name, getattr(self, name))
        if self.shard and self.lora:
            raise UsageError(
                "adapters (lora) are few weights, and shard divides all of them over processes",
                "Leave out one of the two.",
            )
        whole_number("cache_teacher", self.cache_teacher, 0, "It is a number of scores, like 64; 0 keeps none.")
        if self.cache_teacher and (self.features or self.shard or self.lora):
            other = "features compare" if self.features else "shard divides" if self.shard else "lora shares"
            raise UsageError(
                f"cache_teacher keeps a teacher's outputs in its place, and {other} the teacher itself",
                "Leave out one of the two.",
            )
        if self.shard and self.checkpointing:
            raise UsageError(
                "checkpointing runs blocks twice, and with shard their weights may be elsewhere by then",
                "Leave out one of the two; accumulate saves memory with shard.",
            )
        whole_number("accumulate", self.accumulate, 1, "1 takes a mini-batch at once.")
        if type(self.lora) is not int:
            raise UsageError(f"lora is {self.lora!r}, expected a whole number", "It is a rank, like 16; 0 for none.")
        if self.rate is not None and not 0 < real_number("rate", self.rate, "Leave it out.") < float("inf"):
            raise UsageError(f"the learning rate is {self.rate}, expected a number above 0", "Leave it out.")

    def _number(self, name: str, value: object) -> float:
        """A setting as a number, whole where its default is."""
        if type(getattr(type(self), name)) is int:
            return whole_number(name, value, -(2**62), "Leave it out.")
        return real_number(name, value, "Leave it out.")

    def weight_of_features(self, optimizer: str) -> float:
        """What was asked for, or what serves networks that learn with this optimizer."""
        if self.features is not None:
            return self.features
        return 0.0 if self.cache_teacher else _FEATURES[optimizer]

    def mask_of_features(self, task: str | None) -> float:
        """What was asked for, or what serves networks of this task."""
        return _SIGMAS.get(task or "", 0.0) if self.sigmas is None else self.sigmas

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON gives it back."""
        # Version 0.1.0 knew neither adapters nor masks nor parts of mini-batches, nor recomputed blocks.
        added = {
            "lora": bool(self.lora),
            "sigmas": self.sigmas is not None,
            "accumulate": self.accumulate > 1,
            "shard": self.shard,
            "cache_teacher": self.cache_teacher > 0,
            "checkpointing": self.checkpointing,
        }
        omitted = {"device", *(name for name, is_set in added.items() if not is_set)}
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in omitted}))


_MANY = 1e9
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("warm_up", 0, 0.9),
    ("clip", 0, _MANY),
    ("features", 0, _MANY),
    ("labels", 0, _MANY),
    ("sigmas", 0, _MANY),
    ("temperature", 1e-3, _MANY),
    ("blends", 0, 1),
    ("unlabelled_share", 0, 1),
    ("norm_batch", 2, _MANY),
    ("validation_images", 1, _MANY),
    ("looks", 1, _MANY),
    ("patience", 1, _MANY),
    ("decay", 0, _MANY),
    ("lora", 0, 4096),
)
