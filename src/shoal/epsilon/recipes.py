"""Complete recipes: those of the paper for CIFAR-10, CIFAR-100, SVHN and ImageNet, and one for the embedded digits.

Source: arXiv:1804.01661 and its code (yuxwind/epsilonResnet). Departures, each for a reason: images are normalised per
channel, as all of Shoal does, where the paper subtracts a mean per pixel; a block whose gate stayed closed is frozen
and taken out (`freeze_after`), which `faithful` turns off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal.epsilon.samples import Augmentation
from shoal.errors import UsageError, did_you_mean

Falls = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RatePlan:
    """The learning rate by epoch.

    Args:
        start: in the first epochs.
        falls: (epoch, rate from there on), rising epochs, while no block was lost.
        after_loss: the same, counted from the epoch after the latest loss; empty: losses change nothing.
        settle: so many last epochs fall linearly towards zero, with all gates open, so that they train the very network
            that comes out. The paper has none: its 1000 epochs leave the rate time to fall after the last loss.
    """

    start: float = 0.1
    falls: Falls = ()
    after_loss: Falls = ()
    settle: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.start < float("inf"):
            raise UsageError(f"the learning rate is {self.start}, expected a number above 0", "The paper has 0.1.")
        if self.settle < 0:
            raise UsageError(f"settle is {self.settle} epochs, expected 0 or more", "Leave it out for the recipe's.")

    def rate(self, epoch: int, epochs: int, lost_at: int | None) -> float:
        """The rate of `epoch` (from 0) of `epochs`; `lost_at` is the latest epoch before it that lost a block."""
        quiet = epochs - self.settle
        if self.settle and epoch >= quiet:
            before = self._stepped(max(0, quiet - 1), lost_at)
            return before * (epochs - epoch) / (self.settle + 1)
        return self._stepped(epoch, lost_at)

    def counts(self, epoch: int, epochs: int) -> bool:
        """Whether a loss in this epoch sends the rate back."""
        return bool(self.after_loss) and epoch < epochs - self.settle

    def gating_epochs(self, epochs: int) -> int:
        """How many of the first epochs have working gates: all but the settling ones, or all where no other is left."""
        return epochs - self.settle if self.settle < epochs else epochs

    def _stepped(self, epoch: int, lost_at: int | None) -> float:
        if lost_at is None or not self.after_loss:
            return stepped(self.start, self.falls, epoch)
        return stepped(self.start, self.after_loss, epoch - lost_at - 1)


@dataclass(frozen=True)
class DecayPlan:
    """The weight decay by step: multiplied by `factor` every `every` steps (0: never)."""

    start: float = 2e-4
    every: int = 0
    factor: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise UsageError(f"the weight decay is {self.start}, expected a number from 0", "The paper has 2e-4.")

    def decay(self, step: int) -> float:
        """The decay at `step`, from 0."""
        return self.start * (self.factor ** (step // self.every) if self.every else 1.0)


def stepped(start: float, falls: Sequence[tuple[int, float]], epoch: int) -> float:
    """A step function: `start`, then the rate of the last fall that was reached."""
    rate = start
    for at, value in falls:
        if epoch >= at:
            rate = value
    return rate


@dataclass(frozen=True)
class Recipe:
    """How to train on one data set.

    Args:
        name: of the recipe.
        model: the network it was made for, where none is given.
        epsilon: of the gates.
        epochs: of a run.
        batch_size: samples in a mini-batch, over all processes.
        rate: the learning rate.
        decay: the weight decay.
        augmentation: of training images.
        momentum: of stochastic gradient descent.
        nesterov: its variant.
        side_weight: of the side loss in the middle.
        freeze_after: a block closed on every step of so many epochs in a row is taken out.
        evaluate_every: epochs between two looks at the test error; nothing is chosen by them.
    """

    name: str
    model: str
    epsilon: float
    epochs: int
    batch_size: int
    rate: RatePlan
    decay: DecayPlan
    augmentation: Augmentation
    momentum: float = 0.9
    nesterov: bool = False
    side_weight: float = 0.1
    freeze_after: int = 10
    evaluate_every: int = 1


_CIFAR_RATE = RatePlan(
    0.1, falls=((82, 1e-2), (123, 1e-3), (300, 2e-4)), after_loss=((41, 1e-2), (61, 1e-3), (150, 2e-4))
)
_SVHN_RATE = RatePlan(0.1, falls=((20, 1e-2), (28, 1e-3), (50, 2e-4)), after_loss=((10, 1e-2), (14, 1e-3), (25, 2e-4)))
_IMAGENET_RATE = RatePlan(0.1, falls=((30, 1e-2), (60, 1e-3), (85, 1e-4), (95, 1e-5)))
_CIFAR_DECAY = DecayPlan(2e-4, every=480_000)
_CROP = Augmentation(pad=4, flip=True)
# The paper's SVHN images run from 0 to 255.
_SIGNS = Augmentation(pad=4, brightness=10 / 255, contrast=(0.8, 1.2))
_ZOOM = Augmentation(zoom=(0.08, 1.0), size=224, flip=True)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "digits",
            "digits-resnet",
            2.2,
            60,
            128,
            RatePlan(0.1, settle=20),
            DecayPlan(1e-2),
            Augmentation(pad=1),
            freeze_after=5,
            evaluate_every=5,
        ),
        Recipe("cifar10", "cifar-preact-resnet:110", 2.5, 1000, 128, _CIFAR_RATE, _CIFAR_DECAY, _CROP),
        Recipe("cifar100", "cifar-preact-resnet:110:100", 2.5, 1000, 128, _CIFAR_RATE, _CIFAR_DECAY, _CROP),
        Recipe("svhn", "cifar-preact-resnet:110", 1.5, 150, 128, _SVHN_RATE, _CIFAR_DECAY, _SIGNS, freeze_after=5),
        Recipe(
            "imagenet",
            "timm:resnetv2_101",
            2.0,
            110,
            256,
            _IMAGENET_RATE,
            DecayPlan(1e-4),
            _ZOOM,
            nesterov=True,
            freeze_after=3,
        ),
    )
}
_FINE_TUNING_EPOCHS, _FINE_TUNING_RATE, _FINE_TUNING_DECAY = 10, 0.02, 5e-3
_BY_DATA = {"digits": "digits", "cifar10": "cifar10", "cifar100": "cifar100", "svhn": "svhn", "imagefolder": "imagenet"}


def fine_tuning(base: Recipe, epochs: int | None = None) -> Recipe:
    """The recipe for a network that is trained already and learns from a teacher while it loses blocks.

    A low rate and few epochs; in the second half all gates are open and the rate falls to zero. The decay takes a tenth
    of an idle branch in a hundred steps.

    Args:
            base: whose augmentation, momentum and mini-batches it has.
            epochs: of the run.
    """
    epochs = _FINE_TUNING_EPOCHS if epochs is None else epochs
    return replace(
        base,
        name=f"{base.name}, fine-tuning",
        epochs=epochs,
        rate=RatePlan(_FINE_TUNING_RATE, settle=epochs // 2),
        decay=DecayPlan(_FINE_TUNING_DECAY),
        freeze_after=1,
    )


def recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UsageError: no such recipe, with near matches.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe '{name}'", did_you_mean(name, list(RECIPES)))
    return RECIPES[name]


def recipe_for(data: str) -> Recipe:
    """The recipe made for DATA; that of CIFAR-10 for data of the user's own."""
    return RECIPES[_BY_DATA.get(data.partition(":")[0], "cifar10")]
