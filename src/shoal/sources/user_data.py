"""The user's own data sets and loaders, from `FILE.py:FUNCTION`."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from shoal.batches import as_batch, batches, is_read_once
from shoal.errors import DataError, count_of
from shoal.sources.parts import NEEDS_MORE, NoPart, Part, hold_out, random_subset, why_none_held

_EVERY = 5  # of a loader that cannot be indexed, every fifth mini-batch is validation


def user_parts(returned: Any, *, seed: int, batch_size: int, limit: int | None) -> tuple[Part, Part, Part]:
    """Calibration, validation and test from the (train, test) that the user's function returned.

    A data set (`len` and indexing) and the data set of a DataLoader are split by sample; what the DataLoader
    does to batch them is kept. Any other iterable of mini-batches is used as it is, every fifth mini-batch of
    train being validation: it must give the same mini-batches each time.

    Raises:
        DataError: not a pair, empty, or an iterator that can be read only once.
    """
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise DataError(
            f"the function returned {_described(returned)}, expected (train, test)",
            "Return two data sets, or two loaders.",
        )
    train, test = returned
    if _indexed(train) is not None:
        dataset, collate, size = _settings(train, batch_size)
        labels = _labels_of(dataset)
        kept, held = _split(dataset, seed, labels)
        calibration: Part = DatasetPart(dataset, kept[:limit], collate, size, seed)
        validation: Part = DatasetPart(dataset, held[:limit], collate, size, seed)
        if len(held) == 0:
            validation = NoPart(why_none_held(len(kept)), NEEDS_MORE)
    else:
        count = _check_iterable(train, "train", look_at=_EVERY)
        calibration, validation = BatchSubset(train, False, limit), BatchSubset(train, True, limit)
        if count < _EVERY:
            reason = f"train holds {count} mini-batches, and one in {_EVERY} is kept for validation"
            validation = NoPart(reason, "Return smaller mini-batches, or a data set.")
    if _indexed(test) is not None:
        dataset, collate, size = _settings(test, batch_size)
        rows = random_subset(len(dataset), limit, seed)
        return calibration, validation, DatasetPart(dataset, rows, collate, size, seed)
    _check_iterable(test, "test")
    return calibration, validation, BatchSubset(test, None, limit)


def _split(dataset: Any, seed: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Kept and held out; samples of one group, such as the tiles of an image, are never on both sides."""
    groups = getattr(dataset, "groups", None)
    if not isinstance(groups, Tensor):
        return hold_out(len(dataset), 0.2, seed, labels)
    members = groups.unique()
    held = members[hold_out(len(members), 0.2, seed)[1]]
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    # Whole groups one after the other: figures are of whole images, also where only the first samples are looked at.
    return rows[~torch.isin(groups[rows], held)], torch.cat([(groups == group).nonzero()[:, 0] for group in held])


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """Some rows of a map-style data set; its own transforms are its augmentation."""

    dataset: Any
    rows: Tensor
    collate: Callable[[list[Any]], Any]
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.rows)

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> "DatasetLoader":
        """Mini-batches as the data set's samples collate; `augment` changes nothing here."""
        rows, seed = self.rows[:limit], self.seed + epoch
        if epoch:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        return DatasetLoader(DatasetPart(self.dataset, rows, self.collate, self.batch_size, seed))


@dataclass(frozen=True, eq=False)
class DatasetLoader:
    """A re-iterable of mini-batches; torch is seeded before each, so that random transforms repeat."""

    part: DatasetPart

    def __len__(self) -> int:
        return math.ceil(self.part.size / self.part.batch_size)

    def __iter__(self) -> Iterator[Any]:
        part = self.part
        for start in range(0, part.size, part.batch_size):
            rows = part.rows[start : start + part.batch_size].tolist()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(part.seed + start)
                batch = part.collate([part.dataset[row] for row in rows])
            yield batch


@dataclass(frozen=True, eq=False)
class BatchSubset:
    """The mini-batches of the user's own iterable: every fifth, all others, or (held None) all."""

    batches: Iterable[Any]
    held: bool | None
    limit: int | None = None

    @property
    def size(self) -> None:
        """Unknown without reading them all."""
        return

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> "BatchesLoader":
        """Mini-batches as the user's loader yields them; `augment` and `epoch` change nothing here."""
        limits = [count for count in (limit, self.limit) if count is not None]
        return BatchesLoader(self, min(limits) if limits else None)


@dataclass(frozen=True, eq=False)
class BatchesLoader:
    """A re-iterable of a part of the user's mini-batches, up to `limit` samples."""

    part: BatchSubset
    limit: int | None

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for number, item in enumerate(self.part.batches):
            if self.part.held is not None and (number % _EVERY == _EVERY - 1) != self.part.held:
                continue
            if self.limit is None:
                yield item
                continue
            batch = as_batch(item)
            if seen >= self.limit:
                return
            yield batch.take(self.limit - seen)
            seen += batch.size


def _indexed(data: Any) -> Any:
    """The map-style data set behind `data`, or None."""
    if isinstance(data, DataLoader):
        # A batch sampler of the user's own decides what is batched with what: such a loader is used as it is.
        plain = data.batch_size is not None and not isinstance(data.dataset, IterableDataset)
        return data.dataset if plain else None
    if isinstance(data, (list, tuple)):
        return data if _holds_samples(data) else None
    is_map = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return data if is_map and not isinstance(data, dict) else None


def _holds_samples(data: Any) -> bool:
    """Whether a list holds samples `(x, label)` with a single label each, rather than mini-batches."""
    first = data[0] if data else None
    if not isinstance(first, (tuple, list)) or len(first) != 2 or not hasattr(first[0], "shape"):
        return False
    label = first[1]
    return isinstance(label, (int, float)) or getattr(label, "shape", None) == ()


def _settings(data: Any, batch_size: int) -> tuple[Any, Callable[[list[Any]], Any], int]:
    dataset = _indexed(data)
    if len(dataset) < 2:
        raise DataError(f"a data set of {count_of(len(dataset), 'sample')} cannot be used", "Give at least 2 samples.")
    if isinstance(data, DataLoader):
        return dataset, data.collate_fn, data.batch_size or batch_size
    return dataset, default_collate, batch_size


def _labels_of(dataset: Any) -> Tensor | None:
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None:
        return None
    try:
        classes = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None
    return classes if classes.dim() == 1 and len(classes) == len(dataset) else None


def _check_iterable(data: Any, name: str, look_at: int = 1) -> int:
    """How many of the first mini-batches there are."""
    if isinstance(data, Iterable) and is_read_once(data):
        raise DataError(f"{name} can be read only once: it is {_described(data)}", "Return a list or a DataLoader.")
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, dict)):
        raise DataError(f"{name} is {_described(data)}", "Return a data set, a DataLoader, or a list of mini-batches.")
    count = len(list(batches(islice(data, look_at))))
    if count == 0:
        raise DataError(f"{name} holds no mini-batch", "Return data that is not empty.")
    return count


def _described(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
