import pytest

from shoal.epsilon.controller import EpsilonPlan
from shoal.epsilon.recipes import RECIPES, DecayPlan, RatePlan, recipe, recipe_for, stepped
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


CIFAR, SVHN, IMAGENET = (recipe(name).rate for name in ("cifar10", "svhn", "imagenet"))


def rates(plan, lost_at, *epochs):
    return [plan.rate(epoch, 1000, lost_at) for epoch in epochs]


def test_without_losses_cifar_falls_as_in_the_paper():
    assert rates(CIFAR, None, 0, 81, 82, 122, 123, 299, 300) == [0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 2e-4]


def test_a_loss_sends_the_rate_back_and_it_falls_after_41_61_and_150_epochs():
    assert rates(CIFAR, 99, 100, 140, 141, 160, 161, 249, 250) == [0.1, 0.1, 1e-2, 1e-2, 1e-3, 1e-3, 2e-4]


def test_svhn_is_quicker():
    assert rates(SVHN, None, 19, 20, 28, 50) == [0.1, 1e-2, 1e-3, 2e-4]
    assert rates(SVHN, 9, 10, 20, 24, 35) == [0.1, 1e-2, 1e-3, 2e-4]


def test_imagenet_does_not_go_back():
    assert IMAGENET.rate(40, 110, 39) == 1e-2
    assert not IMAGENET.counts(40, 110)
    assert CIFAR.counts(40, 1000)


def test_the_last_epochs_fall_to_almost_nothing_and_are_not_interrupted():
    plan = RatePlan(0.4, after_loss=((100, 0.1),), settle=3)
    assert [plan.rate(epoch, 10, 2) for epoch in (6, 7, 8, 9)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert plan.counts(6, 10)
    assert not plan.counts(7, 10)


def test_decay_falls_every_so_many_steps():
    plan = recipe("cifar10").decay
    assert plan.decay(479_999) == 2e-4
    assert plan.decay(480_000) == pytest.approx(4e-5)
    assert DecayPlan(1e-4).decay(10**9) == 1e-4


def test_epsilon_is_held_at_zero_and_then_rises():
    plan = EpsilonPlan(2.0, hold=2, rise=3)
    assert [plan.epsilon(epoch) for epoch in range(7)] == [0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert EpsilonPlan(2.5).epsilon(0) == 2.5


def test_stepped_takes_the_last_fall_reached():
    assert [stepped(3, ((1, 2), (5, 1)), epoch) for epoch in (0, 1, 4, 5)] == [3, 2, 2, 1]


@pytest.mark.parametrize("bad", [0, -0.1, float("nan"), float("inf")])
def test_a_bad_rate_is_refused(bad):
    with pytest.raises(UsageError, match="learning rate"):
        RatePlan(bad)


def test_a_bad_decay_is_refused():
    with pytest.raises(UsageError, match="weight decay"):
        DecayPlan(float("nan"))
    with pytest.raises(UsageError, match="settle"):
        RatePlan(0.1, settle=-1)
