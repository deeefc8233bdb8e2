"""What a source of networks or of data is: one value each, in the tables of `models.py` and `data.py`.

Other distributions add theirs with an entry point of the group `shoal.sources`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.plugins import Plugin, PluginTable

GROUP = "shoal.sources"


@dataclass(frozen=True)
class ModelSource:
    """A MODEL by name: `NAME` or `NAME:REST`.

    Args:
        form: how it is written, for messages: 'timm:NAME'. Without a colon it takes no REST.
        build: called with (REST, from_config, fetch); returns the network. `from_config`: its weights will be loaded
            from a file, so that none are needed; `fetch`: it may be fetched from the network.
        summary: what it is, in a few words; `shoal list models` shows it.
    """

    form: str
    build: Callable[[str, bool, bool], nn.Module]
    summary: str = ""


@dataclass(frozen=True)
class DataSource:
    """A DATA by name: `NAME` or `NAME:PATH`.

    Args:
        form: how it is written, for messages: 'npz:FILE'. Without a colon it takes no PATH.
        open: called with (PATH, size); returns a `Source` of stored samples, or (train, test) as data sets or loaders.
            `size`: height and width that the user asked for, or None.
        summary: what it is, in a few words; `shoal list data` shows it.
    """

    form: str
    open: Callable[[Path, int | None], Any]
    summary: str = ""


def source_table(builtin: Mapping[str, Any]) -> PluginTable[Any]:
    """The sources that Shoal ships, then those of other distributions."""
    return PluginTable(GROUP, builtin, _adapt)


def _adapt(plugin: Plugin) -> ModelSource | DataSource:
    if isinstance(plugin.value, ModelSource):
        return replace(plugin.value, build=plugin.guarded(plugin.value.build))
    source = plugin.expect(DataSource, "a ModelSource or a DataSource of shoal.sources")
    return replace(source, open=plugin.guarded(source.open))


def takes_rest(form: str) -> bool:
    """Whether something has to follow the name."""
    return ":" in form
