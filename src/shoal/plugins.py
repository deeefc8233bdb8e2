"""Tables that other distributions may extend by entry points: scores, metrics, kinds of replacement, sources.

What Shoal ships stands in an explicit table; a distribution adds a line of its own in its `pyproject.toml`:

    [project.entry-points."shoal.scores"]
    my_score = "my_package.scores:MY_SCORE"

Nothing is looked up before a table is used, and nothing is imported before its name is.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ParamSpec, TypeVar

from shoal.errors import PluginError, ShoalError, check_memory
from shoal.files.reading import reason_of

Value = TypeVar("Value")
Expected = TypeVar("Expected")
Params = ParamSpec("Params")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plugin:
    """An entry point and what it loaded.

    Args:
        group: of the entry point: `shoal.scores`.
        name: by which users call it.
        distribution: that brings it.
        value: what the entry point refers to.
    """

    group: str
    name: str
    distribution: str
    value: Any

    def expect(self, kind: type[Expected], description: str) -> Expected:
        """The value, if it is of this type.

        Raises:
            PluginError: it is not.
        """
        if not isinstance(self.value, kind):
            raise self.error(f"is of type {type(self.value).__name__}, expected {description}")
        return self.value

    def error(self, problem: str) -> PluginError:
        """An error about this plugin: '<plugin> <problem>'."""
        return PluginError(f"{_title(self.group, self.name, self.distribution)} {problem}", _hint(self.distribution))

    def guard(self) -> AbstractContextManager[None]:
        """Turns whatever the plugin's own code raises into a `PluginError`; errors of Shoal pass."""
        return _failures(f"{_title(self.group, self.name, self.distribution)} failed", self.distribution)

    def guarded(self, function: Callable[Params, Result]) -> Callable[Params, Result]:
        """The function, inside `guard`."""

        @wraps(function)
        def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
            with self.guard():
                return function(*args, **kwargs)

        return call


class PluginTable(Mapping[str, Value]):
    """The built-in values by name, then those of installed distributions, in alphabetical order.

    Args:
        group: of entry points: `shoal.scores`.
        builtin: what Shoal ships.
        adapt: checks what a plugin loaded and returns the value for the table, its functions inside `Plugin.guard`.
    """

    def __init__(self, group: str, builtin: Mapping[str, Value], adapt: Callable[[Plugin], Value]) -> None:
        self.group, self.builtin, self._adapt = group, builtin, adapt
        self._entries: dict[str, EntryPoint] | None = None
        self._loaded: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        """The value of this name; an entry point is imported the first time.

        Raises:
            KeyError: there is none.
            PluginError: names clash, or the entry point cannot be loaded or is not what the table holds.
        """
        entry = self._discovered().get(name)
        if entry is None:
            return self.builtin[name]
        if name not in self._loaded:
            self._loaded[name] = self._adapt(_load(self.group, entry))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """All names; nothing is imported."""
        return iter((*self.builtin, *self._discovered()))

    def __len__(self) -> int:
        """How many names."""
        return len(self.builtin) + len(self._discovered())

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; nothing is imported."""
        return name in self.builtin or name in self._discovered()

    def _discovered(self) -> dict[str, EntryPoint]:
        if self._entries is None:
            self._entries = discover(self.group, self.builtin)
        return self._entries


def discover(group: str, reserved: Container[str]) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in alphabetical order; nothing is imported.

    Raises:
        PluginError: two distributions use the same name, or one uses a `reserved` one.
    """
    entries: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, _distribution(entry))):
        if entry.name in reserved:
            raise _clash(group, entry, "Shoal itself")
        previous = entries.setdefault(entry.name, entry)
        # A distribution that is on the path twice (installed, and as a checkout) shows the same entry point twice.
        if (_distribution(previous), previous.value) != (_distribution(entry), entry.value):
            raise _clash(group, entry, f"the distribution '{_distribution(previous)}'")
    return entries


def _clash(group: str, entry: EntryPoint, holder: str) -> PluginError:
    return PluginError(
        f"{_title(group, entry.name, _distribution(entry))} has a name that {holder} uses already",
        f"Rename the entry point, or uninstall '{_distribution(entry)}'.",
    )


def _load(group: str, entry: EntryPoint) -> Plugin:
    distribution = _distribution(entry)
    message = f"{_title(group, entry.name, distribution)} cannot be loaded from '{entry.value}'"
    with _failures(message, distribution):
        return Plugin(group, entry.name, distribution, entry.load())


@contextmanager
def _failures(message: str, distribution: str) -> Iterator[None]:
    try:
        yield
    except (ShoalError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin may also call sys.exit
        check_memory(error, f"({message})")
        raise PluginError(f"{message}: {type(error).__name__}: {reason_of(error)}", _hint(distribution)) from error


def _title(group: str, name: str, distribution: str) -> str:
    return f"the plugin '{name}' ({group}) of the distribution '{distribution}'"


def _hint(distribution: str) -> str:
    return f"Update or uninstall '{distribution}', or report this to its authors."


def _distribution(entry: EntryPoint) -> str:
    return (entry.dist.name if entry.dist is not None else None) or "unknown"
