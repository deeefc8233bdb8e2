import pytest
import torch

from shoal.sources.image_transform import AugmentationParams, ImageTransform, augmented


def draw(shift, flip=False):
    return AugmentationParams(torch.tensor([shift]), torch.tensor([flip]))


def test_shift_moves_down_and_right_and_fills_with_zero():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    moved = augmented(image, draw([1, -1]))
    assert moved[0, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_flip_mirrors_left_and_right():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    assert augmented(image, draw([0, 0], True))[0, 0].tolist() == [[1, 0], [3, 2]]


def test_nothing_drawn_changes_nothing():
    image = torch.rand(1, 3, 5, 5)
    assert torch.equal(augmented(image, draw([0, 0])), image)


def test_each_image_has_its_own_shift():
    images = torch.eye(4).expand(2, 1, 4, 4)
    both = augmented(images, AugmentationParams(torch.tensor([[1, 0], [0, 1]]), torch.tensor([False, True])))
    assert torch.equal(both[:1], augmented(images[:1], draw([1, 0])))
    assert torch.equal(both[1:], augmented(images[1:], draw([0, 1], True)))


def test_shift_reaches_an_eighth_of_the_image():
    drawn = ImageTransform(shifts=True).draw(500, (3, 32, 32), seed=0)
    assert drawn is not None
    assert drawn.shift.min() == -4
    assert drawn.shift.max() == 4
    assert not drawn.flip.any()


def test_tables_are_not_augmented():
    assert ImageTransform(shifts=True, flips=True).draw(5, (16,), seed=0) is None


def test_integers_are_scaled_and_floats_are_not():
    assert ImageTransform()(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).max() == 1.0
    assert ImageTransform()(torch.full((1, 4), 255.0)).max() == 255.0


@pytest.mark.parametrize("values", [(2.0,), (2.0, 2.0, 2.0)])
def test_mean_and_std_per_channel_or_one_for_all(values):
    x = ImageTransform(mean=values, std=values)(torch.full((1, 3, 2, 2), 6.0))
    assert torch.equal(x, torch.full((1, 3, 2, 2), 2.0))


def test_resize():
    assert ImageTransform(size=5)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 3, 5, 5)
