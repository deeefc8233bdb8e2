import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from shoal.errors import DataError
from shoal.training.loaders import MixedLoader, ResumableLoader, loader_factory
from teaching import images, training


def values(stream, count):
    return [float(stream.next_batch().args[0].sum()) for _ in range(count)]


def test_epoch_follows_epoch():
    stream = ResumableLoader(training(batches=2), 0)
    assert values(stream, 3) == [float(images(16, seed).sum()) for seed in (100, 101, 200)]
    assert stream.position() == [2, 1]


@pytest.mark.parametrize("used", [0, 2, 3, 5])
def test_a_shuffling_loader_goes_on_where_it_was(used):
    loader = DataLoader(list(images(9)), batch_size=3, shuffle=True)
    one, other = (ResumableLoader(loader_factory(loader), 4) for _ in range(2))
    values(one, used)
    torch.rand(7)
    other.seek(one.position())
    assert values(one, 6) == values(other, 6)


def test_an_iterator_is_read_once_and_kept():
    stream = ResumableLoader(loader_factory(iter([images(2, 1), images(2, 2)])), 0)
    first = values(stream, 2)
    assert values(stream, 2) == first


def test_no_data_is_said():
    with pytest.raises(DataError, match="unlabelled data is empty"):
        ResumableLoader(loader_factory([]), 0, "unlabelled").next_batch()


def test_extra_data_comes_in_its_share_of_the_steps_without_labels():
    own, extra = (
        ResumableLoader(loader_factory([images(2)]), 0),
        ResumableLoader(loader_factory([(images(3), torch.zeros(3))]), 0),
    )
    sizes = [MixedLoader(own, extra, 0.25).next_batch(step).size for step in range(8)]
    assert sizes == [2, 2, 2, 3] * 2
    assert MixedLoader(own, extra, 1.0).next_batch(0).target is None


def test_both_streams_go_on():
    def made():
        return MixedLoader(ResumableLoader(training(), 0), ResumableLoader(training(size=3), 1), 0.5)

    one, other = made(), made()
    for step in range(5):
        one.next_batch(step)
    other.seek(one.position())
    for step in itertools.islice(itertools.count(5), 6):
        assert torch.equal(one.next_batch(step).args[0], other.next_batch(step).args[0])
