"""Masks, pairs of images and boxes are read with their images, at one size."""

import json

import numpy as np
import pytest
import torch

from shoal.errors import DataError, SpecError
from shoal.sources import load_data

Image = pytest.importorskip("PIL.Image", reason="pip install 'shoal[vision]'")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


@pytest.fixture
def masks(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for index in range(count):
            write(tmp_path / part / "images" / f"{index}.png", np.full((8, 16, 3), 51))
            mask = np.zeros((8, 16))
            mask[:, 8:] = 2
            mask[0] = 255
            write(tmp_path / part / "masks" / f"{index}.png", mask)
    return tmp_path


def test_masks_are_classes_of_the_resized_pixels(masks):
    data = load_data(f"segmentation:{masks}", size=8, mean=[0.0], std=[1.0], batch_size=2)
    [(x, y)] = list(data.test())
    assert x.shape == (2, 3, 8, 8)
    assert torch.allclose(x, torch.full_like(x, 0.2))
    assert y.dtype == torch.int64
    assert y[0, 1].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert y[0, 0].tolist() == [255] * 8
    assert data.describe()["calibration"] + data.describe()["validation"] == 6


def test_normalised_as_imagenet_by_default(masks):
    [(x, _)] = list(load_data(f"segmentation:{masks}", size=8, batch_size=2).test())
    assert float(x[0, 0, 0, 0]) == pytest.approx((0.2 - 0.485) / 0.229)


def test_pairs_keep_their_ratio(tmp_path):
    for part in ("train", "val"):
        for index in range(3):
            write(tmp_path / part / "inputs" / f"{index}.png", np.full((4, 4, 3), 255 * index // 2))
            write(tmp_path / part / "targets" / f"{index}.jpg", np.full((8, 8, 3), 255 * index // 2))
    [(x, y)] = list(load_data(f"pairs:{tmp_path}", batch_size=8).test())
    assert (x.shape, y.shape) == ((3, 3, 4, 4), (3, 3, 8, 8))
    assert torch.allclose(x.mean((1, 2, 3)), y.mean((1, 2, 3)), atol=0.01)
    [(x, y)] = list(load_data(f"pairs:{tmp_path}", size=2, batch_size=8).test())
    assert (x.shape, y.shape) == ((3, 3, 2, 2), (3, 3, 4, 4))


@pytest.mark.parametrize("odd", ["inputs", "targets"])
def test_pairs_of_several_sizes_are_refused_with_the_way_out(odd, tmp_path):
    for part in ("train", "test"):
        for index in range(3):
            for name in ("inputs", "targets"):
                side = 8 if index == 1 and name in (odd, "targets") else 4
                write(tmp_path / part / name / f"{index}.png", np.zeros((side, side, 3)))
    with pytest.raises(DataError, match=r"images of 4 x 4 and 8 x 8 pixels make no mini-batch\n.*--size, or cut tiles"):
        list(load_data(f"pairs:{tmp_path}", batch_size=3).test())
    assert len(list(load_data(f"pairs:{tmp_path}", batch_size=1).test())) == 3


@pytest.fixture
def coco(tmp_path):
    for part in ("train2017", "val2017"):
        images = [{"id": 10 - index, "file_name": f"{index}.png"} for index in range(3)]
        for image in images:
            write(tmp_path / part / image["file_name"], np.zeros((20, 40, 3)))
        annotations = [
            {"image_id": 9, "bbox": [4, 2, 8, 6], "category_id": 7},
            {"image_id": 9, "bbox": [0, 0, 40, 20], "category_id": 7, "iscrowd": 1},
        ]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        document = {"images": images, "annotations": annotations}
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))
    return tmp_path


def test_boxes_are_corners_in_the_resized_image(coco):
    [(x, targets)] = list(load_data(f"coco:{coco}", size=10, batch_size=3).test())
    assert x.shape == (3, 3, 10, 10)
    found = {tuple(target["boxes"].shape): target for target in targets}
    assert found[2, 4]["boxes"].tolist() == [[1.0, 1.0, 3.0, 4.0], [0.0, 0.0, 10.0, 10.0]]
    assert found[2, 4]["labels"].tolist() == [7, 7]
    assert found[2, 4]["iscrowd"].tolist() == [0, 1]
    assert sum(len(target["labels"]) for target in targets) == 2


def test_what_is_missing_is_named(masks, coco, tmp_path):
    (masks / "train" / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"no partner for 1 of 6 images, the first is 3.png"):
        load_data(f"segmentation:{masks}")
    with pytest.raises(DataError, match="not laid out as COCO"):
        load_data(f"coco:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="there is no folder"):
        load_data(f"pairs:{tmp_path / 'nowhere'}")
    listing = coco / "annotations" / "instances_val2017.json"
    document = json.loads(listing.read_text())
    document["images"][0]["file_name"] = "../secret.png"
    listing.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"outside of its folder"):
        load_data(f"coco:{coco}")
    listing.write_text("[]")
    with pytest.raises(DataError, match="is no list of COCO"):
        load_data(f"coco:{coco}")


def test_a_mask_in_colours_is_refused(masks):
    write(masks / "test" / "masks" / "0.png", np.zeros((8, 16, 3)))
    with pytest.raises(DataError, match="of the mode RGB"):
        list(load_data(f"segmentation:{masks}", size=8).test())


def test_tiles_cover_every_pixel_with_its_target(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 1)):
        for index in range(count):
            large = rng.integers(0, 255, (20, 28, 3))
            write(tmp_path / part / "targets" / f"{index}.png", large)
            write(tmp_path / part / "inputs" / f"{index}.png", large[::2, ::2])
    data = load_data(f"tiles:4:pairs:{tmp_path}", batch_size=50)
    [batch] = list(data.test())
    x, y = batch.args[0], batch.target
    assert (x.shape, y.shape) == ((12, 3, 4, 4), (12, 3, 8, 8))  # rows at 0, 4, 6; columns at 0, 4, 8, 10
    assert torch.allclose(x, y[..., ::2, ::2])
    whole = torch.from_numpy(np.array(Image.open(tmp_path / "test" / "inputs" / "0.png"))).permute(2, 0, 1) / 255
    assert torch.allclose(x[3], whole[:, :4, 10:])
    assert torch.allclose(x[11], whole[:, 6:, 10:])
    kept, held = (
        {tuple(tile[:, 0, 0].tolist()) for batch in part for tile in batch.args[0]}
        for part in (data.calibration(), data.validation())
    )
    assert data.describe()["validation"] == 12  # one image of five
    assert not kept & held


def test_tiles_of_masks(masks):
    [batch] = list(load_data(f"tiles:8:segmentation:{masks}", batch_size=9, mean=[0.0], std=[1.0]).test())
    x, y = batch.args[0], batch.target
    assert (x.shape, y.shape) == ((4, 3, 8, 8), (4, 8, 8))
    assert y[:, 1, 0].tolist() == [0, 2, 0, 2]


def test_tiles_overlap_as_asked_and_say_where_they_were_cut_out(masks):
    [batch] = list(load_data(f"tiles:6:2:segmentation:{masks}", batch_size=99).test())
    places = [(place.image, place.top, place.left) for place in batch.places]
    assert places == [(image, top, left) for image in (0, 1) for top in (0, 2) for left in (0, 4, 8, 10)]
    assert {(place.height, place.width) for place in batch.places} == {(8, 16)}
    assert batch.take(3).places == batch.places[:3]
    assert batch.to("cpu").cloned().places == batch.places


def test_validation_holds_whole_images_also_where_it_is_cut_short(tmp_path):
    for part, count in (("train", 10), ("test", 1)):
        for index in range(count):
            for kind in ("inputs", "targets"):
                write(tmp_path / part / kind / f"{index}.png", np.full((8, 8, 3), index))
    batches = list(load_data(f"tiles:4:pairs:{tmp_path}", batch_size=3).validation(limit=5))
    images = [place.image for batch in batches for place in batch.places]
    assert images == [images[0]] * 4 + [images[4]]
    assert images[0] != images[4]


def test_boxes_that_are_none_are_refused_with_their_image(coco):
    listing = coco / "annotations" / "instances_train2017.json"
    for box in ([0, 0, -3, 4], [0, 0, 3], [0, 0, 1e999, 1]):
        document = json.loads(listing.read_text())
        document["annotations"][0]["bbox"] = box
        listing.write_text(json.dumps(document))
        with pytest.raises(
            DataError, match=r"the box \[.*\] of image \d+ is no \(x, y, width, height\)|a number is inf"
        ):
            load_data(f"coco:{coco}")


@pytest.mark.parametrize(("sizes", "said"), [([(0, 5)], "1 annotation left"), ([(5, 0), (0, 0)], "2 annotations left")])
def test_boxes_without_an_area_are_left_out_with_a_word(coco, sizes, said):
    """They are no objects: torchvision refuses to learn from them."""

    def add(document):
        flat = [{"image_id": 9, "bbox": [4, 2, *size], "category_id": 7} for size in sizes]
        document["annotations"] = [flat[0], *document["annotations"], *flat[1:]]

    with pytest.warns(UserWarning, match=rf"instances_val2017.json': {said} out, whose box has no width or no height"):
        [(_, targets)] = changed(coco, add)
    assert [len(target["boxes"]) for target in targets] == [0, 2, 0]
    for target in targets:
        assert len(target["boxes"]) == len(target["labels"]) == len(target["iscrowd"])


def changed(coco, change):
    listing = coco / "annotations" / "instances_val2017.json"
    document = json.loads(listing.read_text())
    change(document)
    listing.write_text(json.dumps(document))
    return list(load_data(f"coco:{coco}", size=10, batch_size=3).test())


def test_boxes_of_another_image_are_refused(coco):
    with pytest.raises(DataError, match=r"1.png' is of \(40, 20\) pixels, .* lists it with \(20, 40\)"):
        changed(coco, lambda document: document["images"][1].update(width=20, height=40))
    changed(coco, lambda document: document["images"][1].update(width=40, height=20))
    with pytest.raises(DataError, match=r"the box \[41.0, 2.0, 8.0, 6.0\] lies outside of .*1.png"):
        changed(coco, lambda document: document["annotations"][0].update(bbox=[41, 2, 8, 6]))
    with pytest.raises(DataError, match="lies outside of"):
        changed(coco, lambda document: document["annotations"][0].update(bbox=[2, -7, 8, 6]))
    changed(coco, lambda document: document["annotations"][0].update(bbox=[38, 2, 8, 6]))  # over the border


def test_categories_that_are_not_listed_are_refused(coco):
    changed(coco, lambda document: document.update(categories=[{"id": 7}]))
    with pytest.raises(DataError, match="the category 7 of image 9 is not among the categories"):
        changed(coco, lambda document: document.update(categories=[{"id": 8}]))


def test_tiles_that_cannot_be_cut_are_refused(masks):
    with pytest.raises(DataError, match=r"16 x 8 pixels, smaller than a tile of 9\n.*smaller tiles"):
        load_data(f"tiles:9:segmentation:{masks}")
    with pytest.raises(DataError, match="--size does not apply to tiles"):
        load_data(f"tiles:8:segmentation:{masks}", size=8)
    with pytest.raises(SpecError, match="tiles of 8 pixels cannot overlap by 8"):
        load_data(f"tiles:8:8:segmentation:{masks}")
    for rest in (f"8:coco:{masks}", f"x:pairs:{masks}", "8:pairs", f"0:pairs:{masks}"):
        with pytest.raises(SpecError, match=r"is not of the form tiles:SIDE:pairs:ROOT\n.*pairs, segmentation"):
            load_data(f"tiles:{rest}")


def test_images_of_16_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 16).reshape(4, 4)
    for part in ("train", "test"):
        for index in range(3):
            for folder, kind in (("inputs", np.uint16), ("targets", np.uint8)):
                (tmp_path / part / folder).mkdir(parents=True, exist_ok=True)
                pixels = np.round(ramp if kind is np.uint16 else ramp / 257).astype(kind)
                Image.fromarray(pixels).save(tmp_path / part / folder / f"{index}.png")
            (tmp_path / "classes" / part / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "classes" / part / "a" / f"{index}.png")
    [(x, y)] = list(load_data(f"pairs:{tmp_path}", batch_size=8).test())
    assert torch.allclose(x, y, atol=1e-6)
    assert (float(x.min()), float(x.max()), len(x.unique())) == (0.0, 1.0, 16)
    [(x, _)] = list(load_data(f"imagefolder:{tmp_path / 'classes'}", size=4, batch_size=8).test())
    assert len(x[:, 0].unique()) == 16
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "test" / "inputs" / "1.tiff")
    (tmp_path / "test" / "inputs" / "1.png").unlink()
    with pytest.raises(
        DataError, match=r"1.tiff' cannot be read as an image: its pixels are of 32 bits, expected 8 or"
    ):
        list(load_data(f"pairs:{tmp_path}", batch_size=8).test())


def write_turned(path, pixels):
    """A file that is stored lying, and shown as these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    orientation = Image.Exif()
    orientation[0x0112] = 6  # a quarter turn to the right is what viewers do
    Image.fromarray(np.rot90(np.asarray(pixels, dtype=np.uint8))).save(path, exif=orientation)


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path):
    """Of a pair, an editor may have saved one with the orientation and the other without."""
    shown = np.arange(48).reshape(8, 6, 1).repeat(3, 2) * 5
    for part in ("train", "test"):
        for index in range(2):
            write_turned(tmp_path / part / "inputs" / f"{index}.png", shown)
            write(tmp_path / part / "targets" / f"{index}.png", shown)
            write_turned(tmp_path / part / "images" / f"{index}.png", shown)
            write(tmp_path / part / "masks" / f"{index}.png", shown[..., 0] // 5)
    for spec in (f"pairs:{tmp_path}", f"tiles:4:pairs:{tmp_path}"):
        for batch in load_data(spec, batch_size=8).test():
            x, y = (batch.args[0], batch.target) if spec.startswith("tiles") else batch
            assert torch.allclose(x, y), spec
    for batch in load_data(f"tiles:6:segmentation:{tmp_path}", batch_size=8, mean=[0.0], std=[1.0]).test():
        assert torch.allclose(batch.args[0][:, 0] * 255, batch.target * 5.0)


def test_a_folder_of_classes_follows_the_exif_orientation(tmp_path):
    shown = np.zeros((8, 8, 3))
    shown[0] = 255
    for part in ("train", "test"):
        for kind in ("a", "b"):
            write_turned(tmp_path / part / kind / "0.png", shown)
    [(x, _)] = list(load_data(f"imagefolder:{tmp_path}", size=8, mean=[0.0], std=[1.0]).test())
    assert torch.equal(x[0, 0, 0], torch.ones(8))
    assert not x[0, 0, 1:].any()


def test_boxes_are_those_of_an_image_as_it_is_stored(coco):
    shown = np.zeros((40, 20, 3))
    for part in ("train2017", "val2017"):
        for index in range(3):
            write_turned(coco / part / f"{index}.png", shown)
    [(_, targets)] = list(load_data(f"coco:{coco}", size=10, batch_size=3).test())
    assert [target["boxes"][0].tolist() for target in targets if len(target["boxes"])] == [[1.0, 1.0, 3.0, 4.0]]


def test_a_target_of_another_shape_than_its_input_is_refused(tmp_path):
    for part in ("train", "test"):
        for index in range(2):
            write(tmp_path / part / "inputs" / f"{index}.png", np.zeros((4, 8, 3)))
            write(tmp_path / part / "targets" / f"{index}.png", np.zeros((8, 4, 3)))
    for spec in (f"pairs:{tmp_path}", f"tiles:4:pairs:{tmp_path}"):
        with pytest.raises(DataError, match=r"is of \(4, 8\) pixels, its input of \(8, 4\)"):
            list(load_data(spec, size=4 if spec.startswith("pairs") else None).test())


def test_a_tile_that_ends_between_two_pixels_of_the_target_is_refused(tmp_path):
    for part in ("train", "test"):
        for index in range(2):
            write(tmp_path / part / "inputs" / f"{index}.png", np.zeros((6, 6, 3)))
            write(tmp_path / part / "targets" / f"{index}.png", np.zeros((9, 9, 3)))
    assert len(list(load_data(f"tiles:4:pairs:{tmp_path}", batch_size=99).test())) == 1  # 4 and 2 times 1.5
    with pytest.raises(DataError, match=r"of 6 x 6 pixels, ends between two pixels of its target, of 9 x 9"):
        list(load_data(f"tiles:3:pairs:{tmp_path}").test())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda document: document["annotations"][0].update(image_id=99), "of image 99, which is not among the images"),
        (lambda document: document["annotations"][0].update(category_id=7.5), "the id 7.5 is no whole number"),
        (lambda document: document["images"][0].update(id=9), "several images have the same id"),
        (lambda document: document.pop("annotations"), "it has no images and annotations"),
    ],
)
def test_a_list_of_coco_says_what_is_wrong_with_it(coco, edit, message):
    listing = coco / "annotations" / "instances_val2017.json"
    document = json.loads(listing.read_text())
    edit(document)
    listing.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        load_data(f"coco:{coco}")
