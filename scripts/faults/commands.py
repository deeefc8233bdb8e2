"""The commands that are disturbed, as a user types them."""

from dataclasses import dataclass
from pathlib import Path

_SMALL = Path(__file__).with_name("small.py").resolve()
_NETWORK, _TEACHER, _CLOCK = (f"{_SMALL}:{name}" for name in ("network", "teacher", "milliseconds"))
OUT = "out"


@dataclass(frozen=True)
class Command:
    """One command line; `journals` are the files in which a measurement, once made, is never made again."""

    name: str
    arguments: tuple[str, ...]
    journals: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """What follows `shoal`."""
        return [self.name.split()[0], *self.arguments, "--seed", "0", "--out", OUT, "--json"]


_DATA = ("digits", "--limit", "128", "--batch-size", "32")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMANDS = (
    Command("compress --remove", (_NETWORK, *_DATA, "--remove", "3"), ("progress.jsonl",)),
    Command(
        "compress --macs",
        (
            *(_NETWORK, *_DATA, "--latency-from", _CLOCK),
            *_words("--macs 0.6 --stand-ins conv3,scale --images 96 --recover 12"),
        ),
        ("tables/tables.jsonl",),
    ),
    Command("scan", (_NETWORK, *_DATA), ("progress.jsonl",)),
    Command("train", (_NETWORK, *_DATA, *_words("--recipe digits --epochs 4"))),
    Command("distill", (_NETWORK, *_DATA, "--teacher", _TEACHER, *_words("--budget 24 --lr 0.05"))),
)
