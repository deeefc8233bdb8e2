"""The embedded data set: scikit-learn's handwritten digits, which need no network."""

import torch

from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import InMemory
from shoal.sources.source import Source
from shoal.sources.split import hold_out


def digits() -> Source:
    """1,797 handwritten digits, (1, 8, 8), 17 grey levels: a quarter of every class is test.

    The split does not follow the user's seed: the embedded network was trained on the calibration part, and
    validation and test must stay unseen by it.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    classes = torch.from_numpy(labels).long()
    train, test = hold_out(len(images), 0.25, seed=0, labels=classes)
    look = ImageTransform(scale=1 / 16, mean=(0.3053,), std=(0.3761,), shifts=True)
    return Source(InMemory(images[train]), InMemory(images[test]), classes[train], classes[test], look, split_seed=0)
