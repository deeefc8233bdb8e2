import torch

from shoal.sources.image_transform import ImageTransform
from shoal.sources.parts import ImagePart, InMemory


def part(batch_size=4, labels=True, seed=0):
    values = torch.randint(0, 256, (10, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImagePart(
        InMemory(values),
        torch.arange(10) if labels else None,
        torch.arange(9, -1, -1),
        ImageTransform(shifts=True, flips=True),
        batch_size,
        seed,
    )


def everything(loader):
    return torch.cat([x for x, _ in loader])


def test_order_and_last_smaller_batch():
    loader = part().loader()
    assert [y.tolist() for _, y in loader] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
    assert len(loader) == 3


def test_reading_again_gives_the_same_images():
    loader = part().loader(augment=True)
    assert torch.equal(everything(loader), everything(loader))


def test_batch_size_does_not_change_the_augmentation():
    assert torch.equal(everything(part(3).loader(augment=True)), everything(part(10).loader(augment=True)))


def test_augmentation_changes_images_and_follows_the_seed():
    plain, one = everything(part().loader()), everything(part().loader(augment=True))
    assert not torch.equal(plain, one)
    assert not torch.equal(one, everything(part(seed=1).loader(augment=True)))


def test_another_epoch_has_another_order_of_the_same_samples():
    labels = torch.cat([y for _, y in part().loader(epoch=1)]).tolist()
    assert labels != list(range(9, -1, -1))
    assert sorted(labels) == list(range(10))


def test_limit():
    assert len(everything(part().loader(limit=5))) == 5


def test_without_labels_only_inputs():
    assert next(iter(part(labels=False).loader())).shape == (4, 1, 16, 16)
