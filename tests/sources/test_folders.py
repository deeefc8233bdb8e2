import pytest
import torch

from shoal.errors import DataError
from shoal.sources.image_sets import cifar10, cifar100, image_folder, svhn

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(["ant", "bee"]):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image.new("RGB", (20, 10), (255 * label, number, 0)).save(folder / f"{number}.png")
    return tmp_path


def test_images_are_scaled_and_cut(root):
    source = image_folder(root, size=8)
    assert (len(source.train), len(source.test)) == (6, 2)
    images = source.train.take(torch.tensor([0, 5]))
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert images[:, 0].float().mean(dim=(1, 2)).tolist() == [0, 255]
    assert source.train_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_files_are_opened_only_when_read(root):
    (root / "train" / "ant" / "0.png").write_bytes(b"broken")
    source = image_folder(root)
    with pytest.raises(DataError, match=r"0\.png' cannot be read as an image"):
        source.train.take(torch.tensor([0]))


def test_class_that_train_has_not(root):
    (root / "val" / "wasp").mkdir()
    with pytest.raises(DataError, match="classes that train has not: wasp"):
        image_folder(root)


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"not a folder of images\n.*ROOT/train/CLASS"):
        image_folder(tmp_path / "no")
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="there are no images"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("build", "expected"),
    [(cifar10, "cifar-10-batches-py"), (cifar100, "cifar-100-python"), (svhn, "train_32x32.mat")],
)
def test_missing_data_says_what_is_expected(build, expected, tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match=f"does not exist\n.*{expected}.*does not download"):
        build(tmp_path / "no")
    with pytest.raises(DataError, match="is not complete"):
        build(tmp_path)
