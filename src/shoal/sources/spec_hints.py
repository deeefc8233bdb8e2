"""What somebody may have meant by a MODEL or DATA that there is none of: the form it takes to be understood."""

from collections.abc import Collection
from pathlib import Path

from shoal.files.reading import from_home, is_file, is_folder

_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_DATA_BY_SUFFIX = {".npz": "npz", ".txt": "text", ".md": "text", ".jsonl": "text"}
# What a folder of each form holds, the more particular first.
_DATA_BY_CONTENT = {
    "cifar-10-batches-py": "cifar10",
    "cifar-100-python": "cifar100",
    "train_32x32.mat": "svhn",
    "annotations": "coco",
    "train/masks": "segmentation",
    "train/targets": "pairs",
    "train.safetensors": "latents",
    "model_index.json": "diffusion",
    "train": "imagefolder",
}
_ORDER = "MODEL comes first, then DATA: shoal COMMAND MODEL DATA."


def model_hint(spec: str, data_names: Collection[str]) -> str:
    """How to write a MODEL that was written without its form; empty where nothing suggests itself."""
    file, colon, function = spec.rpartition(":")
    module = f"{file.replace('.', '/')}.py"
    if colon and function.isidentifier() and is_file(Path(module)):
        return f"Did you mean '{module}:{function}'?"
    if spec.endswith(_WEIGHTS):
        return f"These are weights: give the network that they are for as MODEL, and --weights {spec}."
    if spec.partition(":")[0] in data_names:
        return f"'{spec}' is DATA. {_ORDER}"
    if colon or not spec:
        return ""
    owner, slash, name = spec.partition("/")
    if owner and slash and name and "/" not in name:
        return f"Did you mean 'hf:{spec}'?"
    return (
        f"In a library: torchvision:{spec}, timm:{spec}; `shoal list models {spec}` searches both." if not slash else ""
    )


def data_hint(spec: str, model_names: Collection[str]) -> str:
    """How to write DATA that was written without its form; empty where nothing suggests itself."""
    path = from_home(spec or "data")
    if path.suffix in _DATA_BY_SUFFIX:
        form = _DATA_BY_SUFFIX[path.suffix]
        return f"Did you mean '{form}:{spec}'?"
    if spec and is_folder(path):
        return next(
            (f"Did you mean '{form}:{spec}'?" for name, form in _DATA_BY_CONTENT.items() if _exists(path / name)),
            f"It is a folder: of images by class it is imagefolder:{spec}, of text text:{spec}.",
        )
    if spec.partition(":")[0] in model_names:
        return f"'{spec}' is a MODEL. {_ORDER}"
    return ""


def _exists(path: Path) -> bool:
    return is_file(path) or is_folder(path)
