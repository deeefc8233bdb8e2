"""What a network answers to every test image, kept as arrays, so that cells of different processes can be paired."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.files.writing import write_atomically
from shoal.measure import Predictions, compare, kl_per_sample, mcnemar, mean_interval, paired_drop, quality


@dataclass(frozen=True, eq=False)
class Answers:
    """Per sample: the class, whether it is right (empty without labels), whether the original says so too, and KL."""

    classes: np.ndarray
    right: np.ndarray
    agrees: np.ndarray
    kl: np.ndarray
    inputs: int

    @staticmethod
    def of(original: Predictions, other: Predictions) -> "Answers":
        """From the predictions of the two networks on the same samples."""
        classes = other.log_probs.argmax(-1)
        right = np.zeros(0, bool) if other.target is None else (classes == other.target).numpy()
        agrees = (classes == original.log_probs.argmax(-1)).numpy()
        kl = kl_per_sample(original.log_probs, other.log_probs).numpy()
        return Answers(classes.numpy().astype(np.int32), right, agrees, kl, other.inputs or 0)

    def keep(self, path: Path) -> None:
        """Write them down, atomically."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # an open file, since savez adds an ending to a name
                np.savez_compressed(file, **vars(self))

        write_atomically(path, write)

    @staticmethod
    def kept(path: Path) -> "Answers":
        """Read them back."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("classes", "right", "agrees", "kl")}
            return Answers(**arrays, inputs=int(file["inputs"]))


def against_original(original: Predictions, other: Predictions) -> dict[str, Any]:
    """Quality with its interval, and the paired comparison with the original."""
    compared = compare(original, other, "test").model_dump(mode="json")
    return quality(other, "test").model_dump(mode="json") | {"original_top1": quality(original, "test").top1} | compared


def against(shoal: Answers, rival: Answers) -> dict[str, Any]:
    """How far the rival is behind Shoal's network, sample by sample: positive = the rival is worse."""
    if shoal.inputs != rival.inputs or len(shoal.classes) != len(rival.classes):
        raise ValueError("the two cells saw other test images: delete the work folder of one of them")
    above = rival.kl - shoal.kl
    comparison = {
        "n": len(above),
        "agreement": _paired(shoal.agrees, rival.agrees),
        "kl_above": float(above.mean()),
        "kl_above_interval": mean_interval(above),
        "kl_verdict": verdict(mean_interval(above)),
    }
    if len(shoal.right) and len(rival.right):
        comparison["top1"] = _paired(shoal.right, rival.right)
    return comparison


def _paired(shoal: np.ndarray, rival: np.ndarray) -> dict[str, Any]:
    lost, won = int((shoal & ~rival).sum()), int((~shoal & rival).sum())
    interval = paired_drop(len(shoal), lost, won)
    return {
        "behind": (lost - won) / len(shoal),
        "behind_interval": interval,
        "p_value": mcnemar(lost, won),
        "verdict": verdict(interval),
    }


def verdict(behind: tuple[float, float]) -> str:
    """What an interval of how far the rival is behind allows to say."""
    low, high = behind
    if low > 0:
        return "behind"
    return "ahead" if high < 0 else "within noise"
