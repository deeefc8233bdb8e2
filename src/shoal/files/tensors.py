"""Tensors in safetensors files, with a digest that reveals a flipped bit."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from shoal.errors import ShoalError
from shoal.files.reading import open_file, refusing
from shoal.files.writing import write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; tensors that share memory are written once for each name.

    Raises:
        FolderError: the disk is full, or the folder is not writable; what stood at `path` is still there.
    """
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGEST: digest_of_tensors(plain, metadata)}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, str(temporary), metadata=sealed)
        except SafetensorError as error:  # a full disk comes as one of these
            raise OSError(str(error)) from error

    write_atomically(path, write)


DIGEST = "shoal-sha256"


def read_tensors(
    path: Path,
    kind: type[ShoalError],
    message: str,
    hint: str,
    *,
    keys: Collection[str] | None = None,
    sealed: bool = False,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, on the CPU, and the text in its header with the digest.

    They are copies: where a file is mapped into memory its tensors lie at any address, and some kernels round
    otherwise there.

    Args:
        path: of the file.
        kind: of the error.
        message: what it says, before the reason.
        hint: what it advises.
        keys: what Shoal writes into the header besides the digest, where it wrote the file: any other key is a sign of
            damage, such as a digest whose name was altered. Version 0.1.0 wrote no digests.
        sealed: refuse a file without a digest.

    Raises:
        ShoalError: of that kind: no regular file, no safetensors, or other tensors than the digest in it is of.
    """
    from safetensors import safe_open

    with refusing(kind, message, hint):
        open_file(path).close()
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        text = {key: value for key, value in metadata.items() if key != DIGEST}
        if keys is not None and not set(text) <= set(keys):
            raise ValueError("its header was altered or damaged")
        if (sealed or DIGEST in metadata) and metadata.get(DIGEST) != digest_of_tensors(tensors, text):
            raise ValueError("it was altered or damaged after it was written: the digest in it is of something else")
    return tensors, metadata


def check_whole(path: Path, kind: type[ShoalError], message: str, hint: str) -> None:
    """Refuse what is no safetensors file or was cut short; tensors are not read, so no digest is compared.

    Raises:
        ShoalError: of that kind.
    """
    from safetensors import safe_open

    with refusing(kind, message, hint):
        open_file(path).close()
        with safe_open(str(path), framework="pt"):
            pass


def digest_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of tensors, and of the text in the header, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
