import copy

import torch
from torch import nn

from shoal.recover.weight_averaging import WeightAverage
from teaching import same


def moved(model, value):
    with torch.no_grad():
        model.weight.fill_(value)
        model.running_mean.fill_(value)
        model.num_batches_tracked.add_(1)
    return model


def test_weights_and_statistics_are_averaged_over_a_growing_window():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model)
    for step in range(400):
        average.update(moved(model, float(step)))
    assert 340 < float(average.network.weight[0]) < 390
    assert float(average.network.running_mean[0]) == float(average.network.weight[0])
    assert int(average.network.num_batches_tracked) == 400
    assert model.weight.tolist() == [399.0, 399.0]


def test_an_average_goes_on_where_it_was():
    model = nn.BatchNorm1d(2)
    one, other = WeightAverage(model), WeightAverage(copy.deepcopy(model))
    for step in range(5):
        one.update(moved(model, float(step)))
    other.load(one.tensors())
    for each in (one, other):
        each.update(moved(copy.deepcopy(model), 7.0))
    assert same(one.network, other.network)


class Masked(nn.Module):
    """A causal mask, a frozen one beside it, a batch norm, and something that is no tensor."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.frozen = nn.Parameter(torch.full((2,), -torch.inf), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def get_extra_state(self):
        return {"words": "no tensor"}

    def set_extra_state(self, state):
        raise AssertionError(state)


def test_a_mask_of_minus_infinities_is_copied_and_not_averaged():
    model = Masked()
    average = WeightAverage(model)
    for step in range(3):
        moved(model.norm, float(step))
        model.seen = torch.full((step + 1,), float(step))  # another size each time
        average.update(model)
    own = average.network
    assert torch.equal(own.mask, model.mask)
    assert torch.equal(own.frozen, model.frozen)
    assert own.seen.tolist() == [2.0, 2.0, 2.0]
    assert 0 < float(own.norm.weight[0]) < 2
    assert own.seen is not model.seen


def test_what_is_no_tensor_stays_out_of_the_checkpoint():
    one, other = WeightAverage(Masked()), WeightAverage(Masked())
    one.update(moved_whole(one))
    assert all(isinstance(value, torch.Tensor) for value in one.tensors().values())
    other.load(one.tensors())
    assert other.steps == 1
    assert float(other.network.norm.weight[0]) == 5.0


def moved_whole(average):
    model = Masked()
    moved(model.norm, 5.0)
    return model
