import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.epsilon.samples import Augmentation, training_samples
from shoal.errors import DataError
from shoal.sources import load_data

TINY = Path(__file__).parent.parent / "tiny.py"
CPU = torch.device("cpu")


@pytest.fixture
def npz(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 4
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 1, 4, 4))
    x_test = generator.integers(0, 255, (8, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=x_test, y_test=labels[:8])
    return load_data(f"npz:{tmp_path / 'd.npz'}", mean=[0.5], std=[0.25])


def epoch(data, number=0, seed=0, augmentation=None, share=(0, 1), batch=8):
    return list(training_samples(data, augmentation or Augmentation(), batch, seed, CPU, share).epoch(number))


def numbers(found):
    """The number of each image, out of its pixels."""
    pixels = torch.cat([batch.args[0][:, 0, 0, 0] for batch in found])
    return (255 * (0.25 * pixels + 0.5)).round().int().tolist()


def test_every_sample_once_with_its_label_in_a_new_order(npz):
    found = epoch(npz)
    assert sorted(numbers(found)) == list(range(40)), "the validation part is trained on too"
    assert torch.cat([batch.target for batch in found]).tolist() == [one % 4 for one in numbers(found)]
    assert numbers(found) != numbers(epoch(npz, 1))
    assert numbers(found) != numbers(epoch(npz, seed=1))
    assert numbers(found) == numbers(epoch(npz))


def test_augmentation_is_seeded_by_epoch(npz):
    change = Augmentation(brightness=0.5)
    one, again, other = (epoch(npz, number, augmentation=change)[0].args[0] for number in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_an_incomplete_mini_batch_is_left_out_unless_it_is_all_there_is(npz):
    assert [batch.size for batch in epoch(npz, batch=16)] == [16, 16]
    assert [batch.size for batch in epoch(npz, batch=64)] == [40]


def test_processes_share_an_epoch(npz):
    parts = [numbers(epoch(npz, share=(rank, 2), batch=4)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(40))


def test_image_files_are_read_ahead_and_cut_out_of_larger_ones(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / part / label / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}", size=28)
    samples = training_samples(data, Augmentation(zoom=(0.5, 1.0), size=28), 4, 0, CPU)
    assert samples.images.size == 32
    found = list(samples.epoch(0))
    assert [tuple(batch.args[0].shape) for batch in found] == [(4, 3, 28, 28), (4, 3, 28, 28)]


def test_loaders_of_the_users_own_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(TINY.parent), *sys.path])
    data = load_data(f"{TINY}:data", batch_size=16)
    samples = training_samples(data, Augmentation(flip=True), 8, 0, CPU)
    found = list(samples.epoch(0))
    assert sum(batch.size for batch in found) == 64
    assert samples.size in (64, None)


def test_data_without_labels_is_refused(tmp_path):
    images = np.zeros((10, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, x_test=images)
    with pytest.raises(DataError, match="no labels"):
        training_samples(load_data(f"npz:{tmp_path / 'd.npz'}"), Augmentation(), 8, 0, CPU)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, size=6):
    return torch.rand(count, 3, size, size, generator=generator(1))


def test_the_same_seed_gives_the_same_images_and_another_one_others():
    change = Augmentation(pad=2, flip=True, brightness=0.1, contrast=(0.5, 1.5))
    assert torch.equal(change(images(), generator()), change(images(), generator()))
    assert not torch.equal(change(images(), generator()), change(images(), generator(5)))


def test_every_crop_is_a_part_of_the_padded_image_and_all_corners_occur():
    x = images(200, 4)
    found = Augmentation(pad=1)(x, generator())
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    corners = set()
    for before, after in zip(padded, found, strict=True):
        here = {(i, j) for i in range(3) for j in range(3) if torch.equal(before[:, i : i + 4, j : j + 4], after)}
        assert here
        corners |= here
    assert len(corners) == 9


def test_half_of_the_images_are_mirrored():
    x = images(400)
    found = Augmentation(flip=True)(x, generator())
    mirrored = sum(torch.equal(one, other.flip(-1)) for one, other in zip(found, x, strict=True))
    kept = sum(torch.equal(one, other) for one, other in zip(found, x, strict=True))
    assert mirrored + kept == 400
    assert 150 < mirrored < 250


def test_brightness_adds_one_number_to_an_image():
    x = images()
    offset = Augmentation(brightness=0.2)(x, generator()) - x
    assert torch.allclose(offset, offset.mean(dim=(1, 2, 3), keepdim=True), atol=1e-6)
    assert 0.1 < float(offset.abs().max()) <= 0.2


def test_contrast_keeps_the_mean_of_every_channel():
    x = images()
    found = Augmentation(contrast=(0.8, 1.2))(x, generator())
    assert torch.allclose(found.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-6)
    spread = found.std(dim=(2, 3)) / x.std(dim=(2, 3))
    assert 0.8 - 1e-4 <= float(spread.min()) < 0.9
    assert 1.1 < float(spread.max()) <= 1.2 + 1e-4


def test_zoom_returns_the_size_asked_for_and_stays_within_the_values_of_the_image():
    x = images(16, 20)
    found = Augmentation(zoom=(0.1, 1.0), size=12)(x, generator())
    assert found.shape == (16, 3, 12, 12)
    assert float(found.min()) >= float(x.min()) - 1e-5
    assert float(found.max()) <= float(x.max()) + 1e-5
    whole = Augmentation(zoom=(1.0, 1.0), size=20)(torch.ones(2, 3, 20, 20), generator())
    assert torch.allclose(whole, torch.ones_like(whole))


def test_what_is_no_image_is_left_alone():
    x = torch.randn(4, 7)
    assert Augmentation(pad=2, flip=True)(x, generator()) is x
