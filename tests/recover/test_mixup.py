import torch

from shoal.batches import IGNORED, Batch, as_batch
from shoal.measure import log_probabilities
from shoal.recover.mixup import mixup, mixup_shape, pairwise_mixup
from teaching import images, tokens


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_share_of_the_samples_is_blended_and_the_rest_stays():
    given = Batch((images(200),), {}, torch.arange(200))
    mixed, blend = mixup(given, 0.5, generator())
    own = (mixed.args[0] == given.args[0]).flatten(1).all(dim=1)
    assert 70 < int(own.sum()) < 130
    row = int((~own).nonzero()[0])
    weight, partner = blend.weight[row], blend.partner[row]
    assert torch.allclose(mixed.args[0][row], weight * given.args[0][row] + (1 - weight) * given.args[0][partner])
    assert torch.equal(mixed.target, given.target)


def test_the_same_generator_gives_the_same_blends():
    given = Batch((images(8),))
    one, other = (mixup(given, 1.0, generator(3))[0].args[0] for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, mixup(given, 1.0, generator(4))[0].args[0])


def test_tokens_and_single_samples_are_left_alone():
    for given in (as_batch(tokens()), Batch((images(1),))):
        mixed, blend = mixup(given, 1.0, generator())
        assert blend is None
        assert mixed is given
        assert pairwise_mixup(given) is None


def test_neighbours_are_blended_half_and_half_without_labels():
    given = Batch((images(3),), {}, torch.arange(3))
    mixed = pairwise_mixup(given)
    assert mixed.target is None
    assert torch.allclose(mixed.args[0][1], (given.args[0][1] + given.args[0][0]) / 2)


def test_the_blend_of_neighbours_keeps_the_shape_of_labels_and_none_of_them():
    given = Batch((images(3),), {}, torch.arange(15).reshape(3, 5) % 4)
    mixed = pairwise_mixup(given)
    assert mixed.target.tolist() == [[IGNORED] * 5] * 3
    # So the classes of four are found where a network has them second.
    assert log_probabilities(torch.randn(3, 4, 5), mixed.target).shape == (3, 5, 4)
    assert given.target.min() >= 0


def test_one_label_a_sample_says_nothing_about_axes():
    assert mixup_shape(torch.arange(3)) is None
    assert mixup_shape(None) is None
