import pytest

from shoal.epsilon.recipes import RECIPES, recipe, recipe_for
from shoal.errors import UsageError


@pytest.mark.parametrize(
    ("name", "epsilon", "epochs", "batch", "decay"),
    [
        ("cifar10", 2.5, 1000, 128, 2e-4),
        ("cifar100", 2.5, 1000, 128, 2e-4),
        ("svhn", 1.5, 150, 128, 2e-4),
        ("imagenet", 2.0, 110, 256, 1e-4),
    ],
)
def test_the_constants_are_those_of_the_paper(name, epsilon, epochs, batch, decay):
    one = recipe(name)
    assert (one.epsilon, one.epochs, one.batch_size, one.decay.start) == (epsilon, epochs, batch, decay)
    assert (one.momentum, one.side_weight, one.nesterov) == (0.9, 0.1, name == "imagenet")


def test_augmentation_is_that_of_the_paper():
    assert (recipe("cifar10").augmentation.pad, recipe("cifar10").augmentation.flip) == (4, True)
    signs = recipe("svhn").augmentation
    assert not signs.flip, "a mirrored digit is another sign"
    assert (signs.brightness * 255, signs.contrast) == (10, (0.8, 1.2))


@pytest.mark.parametrize(
    ("data", "name"),
    [("digits", "digits"), ("svhn:/data", "svhn"), ("imagefolder:x", "imagenet"), ("a.py:f", "cifar10")],
)
def test_data_names_its_recipe(data, name):
    assert recipe_for(data).name == name


def test_an_unknown_recipe_is_refused_with_near_matches():
    with pytest.raises(UsageError, match="cifar10"):
        recipe("cifar-10")
    assert set(RECIPES) == {"digits", "cifar10", "cifar100", "svhn", "imagenet"}
