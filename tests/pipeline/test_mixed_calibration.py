import torch

from shoal.batches import IGNORED, Batch
from shoal.measure import log_probabilities
from shoal.pipeline.mixed_calibration import with_mixup


def images(n=4):
    return torch.arange(float(n)).reshape(n, 1, 1, 1).expand(n, 3, 2, 2).clone()


def test_behind_each_mini_batch_comes_its_blend_half_and_half_with_the_neighbour():
    one, other = Batch((images(),)), Batch((images(2) + 10,))
    found = with_mixup([one, other])
    assert len(found) == 4
    assert torch.equal(found[0].args[0], images())
    assert found[1].args[0][:, 0, 0, 0].tolist() == [1.5, 0.5, 1.5, 2.5]
    assert torch.equal(found[2].args[0], images(2) + 10)
    assert found[3].args[0][:, 0, 0, 0].tolist() == [10.5, 10.5]


def test_another_share():
    found = with_mixup([Batch((images(),))], share=0.75)
    assert found[1].args[0][:, 0, 0, 0].tolist() == [0.75, 0.75, 1.75, 2.75]


def test_labels_are_dropped_and_the_given_batches_stay_as_they_were():
    given = Batch((images(),), target=torch.tensor([0, 1, 2, 3]))
    assert [one.target for one in with_mixup([given])] == [None, None]
    assert given.target is not None
    assert torch.equal(given.args[0], images())


def test_tokens_stay_alone():
    tokens = Batch(kwargs={"input_ids": torch.arange(6).reshape(2, 3), "scale": torch.ones(2)})
    [found] = with_mixup([tokens])
    assert torch.equal(found.kwargs["input_ids"], tokens.kwargs["input_ids"])


def test_one_sample_has_no_neighbour():
    assert len(with_mixup([Batch((images(1),))])) == 1


def test_keywords_are_blended_and_what_is_no_tensor_of_samples_is_handed_on():
    given = Batch((images(2),), {"extra": torch.tensor([[0.0], [4.0]]), "temperature": torch.tensor(3.0), "flag": True})
    _, blend = with_mixup([given])
    assert blend.kwargs["extra"].tolist() == [[2.0], [2.0]]
    assert blend.kwargs["temperature"] == 3.0
    assert blend.kwargs["flag"] is True


def test_the_shape_of_labels_stays_and_tells_the_axis_of_the_classes():
    given = Batch((images(),), target=torch.zeros(4, 5, dtype=torch.long))
    found = with_mixup([given])
    assert [one.target.tolist() for one in found] == [[[IGNORED] * 5] * 4] * 2
    assert log_probabilities(torch.randn(4, 3, 5), found[1].target).shape == (4, 5, 3)
