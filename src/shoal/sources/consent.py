"""What may be run, and fetched from the network: what the user asked for in so many words, and nothing a file names."""

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.errors import ConsentError
from shoal.sources.user_file import is_file_spec, parts_of


@dataclass(frozen=True)
class Consent:
    """The specifications that the user gave, and whether what others name may be run and fetched too.

    Args:
        typed: MODEL, DATA and the like as they were given; other words among them mean nothing.
        trust_code: whatever a folder or plan names may be run and fetched.
    """

    typed: frozenset[object] = frozenset()
    trust_code: bool = False

    @classmethod
    def of_words(cls, words: Iterable[str], *, trust_code: bool) -> "Consent":
        """The consent in the words of a command line; `--option=SPEC` gives SPEC."""
        given = [part for word in words for part in (word, word.partition("=")[2]) if part]
        return cls(frozenset(map(_identity, given)), trust_code)

    def covers(self, spec: str) -> bool:
        """Whether this very specification was given, or everything is allowed."""
        return self.trust_code or _identity(spec) in self.typed

    def check(self, spec: str, named_by: str) -> None:
        """Refuse to run a file that nobody asked to run.

        Args:
            spec: of a model, of data, or of latencies.
            named_by: where it stands, for the message.

        Raises:
            ConsentError: it names a Python file, and the user did not.
        """
        if is_file_spec(spec.strip()) and not self.covers(spec):
            raise ConsentError(
                f"{named_by} names '{spec}', and to open it would run that file",
                "Read the file first. Then repeat with --trust-code (in Python: trust_code=True), or name it yourself.",
            )


def _identity(spec: str) -> object:
    """What two spellings of one specification have in common: the file, with links and dots resolved, and function."""
    spec = spec.strip()
    if not is_file_spec(spec):
        return spec
    try:
        return parts_of(spec)
    except (OSError, ValueError, RuntimeError):  # a name that is no path
        return spec
