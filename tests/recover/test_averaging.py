import copy

import torch
from lessons import same
from torch import nn

from shoal.recover.averaging import Average


def moved(model, value):
    with torch.no_grad():
        model.weight.fill_(value)
        model.running_mean.fill_(value)
        model.num_batches_tracked.add_(1)
    return model


def test_weights_and_statistics_are_averaged_over_a_growing_window():
    model = nn.BatchNorm1d(2)
    average = Average(model)
    for step in range(400):
        average.update(moved(model, float(step)))
    assert 340 < float(average.network.weight[0]) < 390
    assert float(average.network.running_mean[0]) == float(average.network.weight[0])
    assert int(average.network.num_batches_tracked) == 400
    assert model.weight.tolist() == [399.0, 399.0]


def test_an_average_goes_on_where_it_was():
    model = nn.BatchNorm1d(2)
    one, other = Average(model), Average(copy.deepcopy(model))
    for step in range(5):
        one.update(moved(model, float(step)))
    other.load(one.tensors())
    for each in (one, other):
        each.update(moved(copy.deepcopy(model), 7.0))
    assert same(one.network, other.network)
