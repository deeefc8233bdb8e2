import torch

from shoal.sources.image_sets import digits


def test_sizes_and_values():
    source = digits()
    assert len(source.train) + len(source.test) == 1797
    assert len(source.test) >= 400
    assert source.train.shape == (1, 8, 8)
    assert source.transform(source.train.take(torch.arange(5))).dtype == torch.float32


def test_normalised():
    source = digits()
    x = source.transform(source.train.take(torch.arange(len(source.train))))
    assert abs(x.mean().item()) < 0.02
    assert abs(x.std().item() - 1) < 0.02


def test_train_and_test_are_apart():
    source = digits()
    train = {tuple(row) for row in source.train.take(torch.arange(len(source.train))).flatten(1).tolist()}
    test = [tuple(row) for row in source.test.take(torch.arange(len(source.test))).flatten(1).tolist()]
    assert not any(row in train for row in test)


def test_every_class_in_test():
    assert torch.bincount(digits().test_labels).min() >= 40
