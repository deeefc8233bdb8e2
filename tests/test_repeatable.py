"""Every kind of loader is read as often as is needed, or refused with the reason before anything is done."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import networks
from shoal.batches import Repeatable, check_one_purpose, is_read_once
from shoal.errors import DataError
from shoal.pipeline import Blocks, CompressConfig, MaxDrop, RemoveBlocks, compress
from shoal.recover import DistillConfig, distill
from shoal.scanning import ScanConfig, scan
from shoal.surgery import certify

DRAWS = torch.Generator().manual_seed(0)
X = torch.rand(24, 3, 8, 8, generator=DRAWS)
Y = torch.randint(10, (24,), generator=DRAWS)


def items():
    return [(X[start : start + 8], Y[start : start + 8]) for start in (0, 8, 16)]


class Fresh:
    """Begins anew each time it is read."""

    def __iter__(self):
        yield from items()


class Same:
    """Hands out the same iterator each time."""

    def __init__(self):
        self.items = iter(items())

    def __iter__(self):
        return self.items


class Drained:
    """Looks as if it began anew each time, and does not."""

    def __init__(self):
        self.items = iter(items())

    def __iter__(self):
        yield from self.items


class Endless(IterableDataset):
    """A data set over a stream that is shared by all that read it."""

    def __init__(self, kind):
        self.kind = kind()

    def __iter__(self):
        return iter(self.kind)


LOADERS = {
    "list": items,
    "tuple": lambda: tuple(items()),
    "generator": lambda: (item for item in items()),
    "iterator": lambda: iter(items()),
    "map": lambda: map(tuple, items()),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=8),
    "iterator of a loader": lambda: iter(DataLoader(TensorDataset(X, Y), batch_size=8)),
    "iterable": Fresh,
    "the same iterator": Same,
    "iterable data set": lambda: DataLoader(Endless(Fresh), batch_size=None),
    "iterable data set that is read once": lambda: DataLoader(Endless(Same), batch_size=None),
}
ONCE = {
    "generator",
    "iterator",
    "map",
    "iterator of a loader",
    "the same iterator",
    "iterable data set that is read once",
}


def network():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 8))).eval()


def scanned(loader):
    return scan(network(), loader, config=ScanConfig(layers=False)).blocks


def compressed(loader):
    settings = CompressConfig(latency_seconds=0.01)
    record = compress(network(), loader, RemoveBlocks(1), test=items(), config=settings).record
    return record.removed, [block.removal_kl for block in record.blocks]


def evaluated(loader):
    settings = CompressConfig(latency_seconds=0.01)
    return compress(network(), items(), Blocks(["layer1.1"]), test=loader, config=settings).record.comparison


def certified(loader):
    return certify(network(), network(), loader)


def distilled(loader):
    torch.manual_seed(1)
    student = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 8))).eval()
    found = distill(
        student, network(), loader, validation=[X[:8] + 1], budget=7, config=DistillConfig(rate=0.01, looks=1)
    )
    return found.recovery.divergence_after


VERBS = [scanned, compressed, evaluated, certified, distilled]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_verb_sees_the_same_data_whatever_it_comes_from(verb):
    expected = verb(items())
    for name in ("generator", "loader", "the same iterator", "iterable data set that is read once"):
        assert verb(LOADERS[name]()) == expected, name


@pytest.mark.parametrize("verb", [scanned, evaluated, distilled], ids=lambda verb: verb.__name__)
def test_what_runs_dry_unseen_is_refused(verb):
    with pytest.raises(DataError, match="gave mini-batches at first, and none when it was read again"):
        verb(Drained())


@pytest.mark.parametrize("name", LOADERS)
def test_what_can_be_read_once_is_known_without_reading_it(name):
    loader = LOADERS[name]()
    state = torch.get_rng_state()
    assert is_read_once(loader) == (name in ONCE)
    assert torch.equal(torch.get_rng_state(), state)
    again = Repeatable(loader)
    for _ in range(3):
        seen = [item[0] for item in again]
        assert torch.equal(torch.cat(seen), X)


def test_one_iterator_does_not_serve_twice():
    shared = iter(items())
    with pytest.raises(DataError, match="the calibration data and the evaluation data are the same iterator"):
        compress(network(), shared, RemoveBlocks(1), test=shared)
    with pytest.raises(DataError, match="the calibration data and the validation data are the same"):
        compress(network(), shared, MaxDrop(1.0), validation=shared)
    with pytest.raises(DataError, match="the first data and the second data are the same"):
        scan(network(), shared, also=shared)
    assert len(list(shared)) == 3, "nothing was read"
    check_one_purpose(calibration=items(), evaluation=None)
    twice = items()
    check_one_purpose(calibration=twice, evaluation=twice)


@pytest.mark.parametrize("empty", [[], iter(()), (item for item in ())])
def test_evaluation_data_that_is_empty_is_refused_before_anything_is_done(empty):
    told = []
    with pytest.raises(DataError, match="the evaluation data is empty"):
        compress(network(), items(), RemoveBlocks(1), test=empty, callbacks=lambda *stage: told.append(stage))
    assert told == []
