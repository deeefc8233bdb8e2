import numpy as np
import pytest
import torch

from shoal.errors import DataError
from shoal.sources.npz import npz


@pytest.fixture
def write(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return save


def arrays(shape=(3, 6, 6), dtype=np.uint8, count=6, **changes):
    x = np.zeros((count, *shape), dtype=dtype)
    y = np.arange(count) % 3
    return {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3], **changes}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 6, 7), (3, 6, 7)), ((6, 7, 3), (3, 6, 7)), ((6, 7), (1, 6, 7)), ((6, 7, 1), (1, 6, 7))],
)
def test_channel_axis(write, shape, expected):
    assert npz(write(**arrays(shape))).train.shape == expected


def test_channels_last_keeps_the_pixels(write):
    x = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    source = npz(write(x_train=x, x_test=x))
    assert torch.equal(source.train.take(torch.tensor([2]))[0, 1], torch.from_numpy(x[2, :, :, 1]))


def test_floats_are_used_as_they_are(write):
    source = npz(write(**arrays((5,), np.float64)))
    assert source.train.shape == (5,)
    assert not source.transform.shifts


def test_only_colour_images_are_mirrored(write):
    assert npz(write(**arrays((3, 6, 6)))).transform.flips
    assert not npz(write(**arrays((1, 6, 6)))).transform.flips


def test_labels_are_optional(write):
    x = np.zeros((4, 2), dtype=np.float32)
    assert npz(write(x_train=x, x_test=x)).train_labels is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.arange(5)}, r"y_train of shape \(5,\) does not fit 6 samples"),
        ({"y_test": np.array([0, -1, 2])}, "negative label: -1"),
        ({"y_test": np.array([0.5, 1, 2])}, "y_test is of type float64"),
        ({"x_test": np.zeros((0, 3, 6, 6), dtype=np.uint8)}, "x_test holds no samples"),
        ({"x_test": np.zeros((3, 3, 6, 8), dtype=np.uint8)}, "differ in shape"),
        ({"x_test": np.zeros((3, 3, 6, 6), dtype=np.int64)}, "x_test is of type int64"),
        ({"x_train": np.full((6, 4), np.nan)}, "x_train holds NaN or Inf: 24 of 24"),
        ({"x_train": np.zeros((6, 5, 6, 7), dtype=np.uint8)}, "no axis of 1, 3 or 4 channels"),
        ({"x_train": np.array([{}] * 6, dtype=object)}, "never unpickles"),
        ({"x_train": np.ones((6, 4), complex)}, "no array of numbers: 'x_train.npy' is of type complex128"),
    ],
)
def test_refused(write, changes, message):
    with pytest.raises(DataError, match=message):
        npz(write(**arrays(**changes)))


def test_missing_keys(write):
    x = np.zeros((4, 2), dtype=np.float32)
    with pytest.raises(DataError, match=r"no array 'x_train'.*\n.*Did you mean 'x_trian'"):
        npz(write(x_trian=x, x_test=x))
    with pytest.raises(DataError, match="labels for one part only"):
        npz(write(x_train=x, x_test=x, y_test=np.zeros(4, dtype=int)))


def test_not_an_archive(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        npz(tmp_path / "no.npz")
    for content in (b"", b"not a zip", b"PK\x03\x04broken"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz"):
            npz(tmp_path / "bad.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="one array"):
        npz(tmp_path / "one.npy")
