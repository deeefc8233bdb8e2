"""What every source of stored samples hands over."""

from dataclasses import dataclass

from torch import Tensor

from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import Images


@dataclass(frozen=True, eq=False)
class Source:
    """Train and test samples as they are stored, and how they become input.

    Args:
        train: stored samples.
        test: stored samples that nothing but the final record reads.
        train_labels: class indices, shape (len(train),), or None.
        test_labels: likewise for test.
        look: scale, usual mean and standard deviation, and which augmentation keeps the class.
        split_seed: fixes the validation part whatever seed the user gives; None leaves it to the user.
    """

    train: Images
    test: Images
    train_labels: Tensor | None
    test_labels: Tensor | None
    look: ImageTransform
    split_seed: int | None = None
