import torch

from shoal.epsilon.augment import Augmentation


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
