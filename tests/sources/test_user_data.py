import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from shoal.batches import batches
from shoal.errors import DataError
from shoal.sources.user_data import user_parts


def dataset(count=20):
    return TensorDataset(torch.arange(count).float().view(-1, 1), torch.arange(count) % 2)


def parts(returned, **changes):
    return user_parts(returned, **{"seed": 0, "batch_size": 4, "limit": None, **changes})


def values(part, **options):
    return [int(v) for batch in batches(part.loader(**options)) for v in batch.args[0].flatten()]


def test_data_sets_are_split_by_sample():
    calibration, validation, test = parts((dataset(), dataset(6)))
    assert (calibration.size, validation.size, test.size) == (16, 4, 6)
    assert sorted(values(calibration) + values(validation)) == list(range(20))
    assert values(test) == list(range(6))
    assert values(calibration) == values(calibration)
    assert len(calibration.loader()) == 4
    assert sorted(values(calibration, epoch=1)) == sorted(values(calibration))


def test_a_shuffling_loader_leaks_nothing_into_validation():
    loader = DataLoader(dataset(), batch_size=5, shuffle=True)
    calibration, validation, _ = parts((loader, loader))
    assert not set(values(calibration)) & set(values(validation))
    assert values(calibration) == values(calibration)
    assert next(iter(batches(calibration.loader()))).size == 5


def test_random_transforms_repeat():
    class Noisy(TensorDataset):
        def __getitem__(self, row):
            return torch.rand(2), row % 2

    calibration, _, _ = parts((Noisy(torch.zeros(20)), dataset()))
    state = torch.random.get_rng_state()
    one, two = (torch.cat([x for x, _ in calibration.loader()]) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_list_of_batches_gives_every_fifth_to_validation():
    train = [(torch.full((2, 1), float(i)), torch.zeros(2).long()) for i in range(10)]
    calibration, validation, test = parts((train, train))
    assert set(values(validation)) == {4, 9}
    assert set(values(calibration)) == {0, 1, 2, 3, 5, 6, 7, 8}
    assert len(values(test)) == 20
    assert values(test, limit=3) == [0, 0, 1]
    assert values(parts((train, train), limit=5)[2]) == [0, 0, 1, 1, 2]
    assert calibration.size is None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (dataset(), "returned TensorDataset, expected"),
        ((dataset(),), r"returned tuple of 1, expected \(train, test\)"),
        ((iter([]), dataset()), "train can be read only once"),
        (([], dataset()), "train holds no mini-batch"),
        ((dataset(), 3), "test is int"),
        ((dataset(1), dataset()), "a data set of 1 sample"),
        (([("a", 1)], dataset()), "a mini-batch is a tuple"),
    ],
)
def test_refused(returned, message):
    with pytest.raises(DataError, match=message):
        parts(returned)


def test_a_part_that_nobody_can_be_judged_on_is_refused_when_it_is_asked_for():
    alone = TensorDataset(torch.arange(3.0), torch.arange(3))
    alone.targets = [0, 1, 2]
    for train, said in (
        ([torch.zeros(2, 1)] * 4, "train holds 4 mini-batches, and one in 5"),
        (alone, "each class of the 3 samples of train has only one"),
    ):
        calibration, validation, _ = parts((train, dataset()))
        assert validation.size == 0
        assert list(calibration.loader())
        with pytest.raises(DataError, match=said):
            validation.loader()


def test_a_list_of_labelled_samples_is_a_data_set():
    samples = [(torch.full((1, 2, 2), float(number)), number % 2) for number in range(10)]
    calibration, validation, test = user_parts((samples, samples), seed=0, batch_size=4, limit=None)
    assert (calibration.size, validation.size, test.size) == (8, 2, 10)
    images, labels = next(iter(test.loader()))
    assert images.shape == (4, 1, 2, 2)
    assert labels.tolist() == [0, 1, 0, 1]
