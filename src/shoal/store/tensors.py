"""Write tensors as safetensors: whole or not at all, with a digest that tells a flipped bit when they are read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from shoal.store.writing import write_atomically
from shoal.tensor_files import DIGEST, digest_of_tensors


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
