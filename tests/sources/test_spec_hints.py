"""What somebody may have meant who writes a MODEL or DATA without its form."""

from pathlib import Path

import pytest

from shoal.errors import SpecError
from shoal.sources import load_data, load_model

FOLDERS = {
    "cifar-10-batches-py/x": "cifar10",
    "cifar-100-python/x": "cifar100",
    "train_32x32.mat": "svhn",
    "annotations/x": "coco",
    "train/masks/x": "segmentation",
    "train/targets/x": "pairs",
    "train.safetensors": "latents",
    "model_index.json": "diffusion",
    "train/cat/x": "imagefolder",
}


@pytest.mark.parametrize(("content", "form"), FOLDERS.items())
def test_a_folder_is_known_by_what_it_holds(content, form, tmp_path):
    (tmp_path / content).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / content).touch()
    with pytest.raises(SpecError, match=f"Did you mean '{form}:{tmp_path}'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("arrays.npz", "Did you mean 'npz:arrays.npz'"),
        ("sub/corpus.jsonl", "Did you mean 'text:sub/corpus.jsonl'"),
        ("novel.txt", "Did you mean 'text:novel.txt'"),
        (".", "imagefolder:., of text text:."),
        ("timm:resnet18", "'timm:resnet18' is a MODEL. MODEL comes first"),
        ("digits-resnet", "'digits-resnet' is a MODEL. MODEL comes first"),
    ],
)
def test_data_without_its_form(spec, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=rf"unknown DATA .*\n.*{hint}.*Known forms: digits"):
        load_data(spec)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("net:build", "Did you mean 'net.py:build'"),
        ("package.net:build", "Did you mean 'package/net.py:build'"),
        ("net:not a name", "Known forms"),
        ("elsewhere:build", "Known forms"),
        ("best.pt", "--weights best.pt"),
        ("runs/best.safetensors", "--weights runs/best.safetensors"),
        ("digits", "'digits' is DATA. MODEL comes first"),
        ("npz:data.npz", "'npz:data.npz' is DATA. MODEL comes first"),
        ("resnet18", "torchvision:resnet18, timm:resnet18; `shoal list models resnet18`"),
        ("HuggingFaceTB/SmolLM2-135M", "Did you mean 'hf:HuggingFaceTB/SmolLM2-135M'"),
        ("/no/such/folder", "Known forms"),
    ],
)
def test_a_model_without_its_form(spec, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("package").mkdir()
    for file in ("net.py", "package/net.py"):
        Path(file).touch()
    with pytest.raises(SpecError, match=f"unknown MODEL .*\n.*{hint}.*digits-resnet, "):
        load_model(spec)
