"""Commands from dataclasses: each field of a request is an argument or an option of the command line.

`option` and `argument` put what the command line needs to know into a field's metadata; `nested` stands for all fields
of another dataclass; `command` makes a typer command of a function that takes a session and a request.
"""

import dataclasses
import inspect
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from shoal.cli.configuration import configuration_text, equivalent_command, explicit_options, load_configuration
from shoal.cli.console import Session
from shoal.files.reading import from_home

_REQUIRED = dataclasses.MISSING


def argument(metavar: str, help: str, default: Any = _REQUIRED, *, values: Collection[str] = ()) -> Any:
    """A field that is a positional argument; `values` are what a shell completes it to."""
    typed = typer.Argument(metavar=metavar, help=help, autocompletion=_completing(values))
    return dataclasses.field(default=default, metadata={"typer": typed})


def option(flag: str, help: str, default: Any = _REQUIRED, *, values: Collection[str] = (), **more: Any) -> Any:
    """A field that is an option; `more` is for `typer.Option`: metavar, min."""
    typed = typer.Option(flag, help=help, autocompletion=_completing(values), **more)
    return dataclasses.field(default=default, metadata={"typer": typed})


def _completing(values: Collection[str]) -> Callable[[str], list[str]] | None:
    """What completes the last of several words parted by commas."""
    if not values:
        return None

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + value for value in values if value.startswith(last)]

    return complete


def nested(group: Callable[..., Any], omit: Collection[str] = ()) -> Any:
    """A field that holds a dataclass of its own, whose fields are on the command line, but for those in `omit`."""
    return dataclasses.field(default_factory=group, metadata={"omit": frozenset(omit)})


def command_line() -> Any:
    """A field that holds the command as it was typed."""
    return dataclasses.field(default_factory=lambda: "shoal " + shlex.join(sys.argv[1:]))


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """What every command takes."""

    config: Path | None = option(
        "--config",
        "Options from a YAML file, as the config.yaml of an output folder; what is typed takes precedence.",
        None,
        metavar="FILE",
        is_eager=True,
        callback=load_configuration,
    )
    trust_code: bool = option(
        "--trust-code",
        "Also run files and fetch networks that a folder or plan names, not only those that are typed.",
        False,
    )
    as_json: bool = option("--json", "One JSON document on stdout, all else on stderr.", False)
    debug: bool = option("--debug", "Show tracebacks.", False)


def command(app: typer.Typer) -> Callable[[Callable[[Session, Any], int]], Callable[..., int]]:
    """Register a function `(session, request) -> exit code`, its request being an annotated dataclass."""

    def register(function: Callable[[Session, Any], int]) -> Callable[..., int]:
        request_type = get_type_hints(function)["request"]

        def run(context: typer.Context, **values: Any) -> int:
            session = Session(**_build(SessionOptions, values).__dict__)
            session.explicit = explicit_options(context)
            session.configuration = configuration_text(context)
            request = _build(request_type, values)
            if session.config is not None and hasattr(request, "command"):
                request = dataclasses.replace(request, command=equivalent_command(context))
            with session.guarded():
                return function(session, request)

        parameters = [*_parameters(request_type), *_parameters(SessionOptions)]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        app.command()(run)
        return run

    return register


def _parameters(request_type: type, omit: Collection[str] = ()) -> Iterator[inspect.Parameter]:
    """The parameters of the command, one for each field that is on the command line."""
    hints = get_type_hints(request_type)
    for field in dataclasses.fields(request_type):
        if field.name in omit:
            continue
        if "omit" in field.metadata:
            yield from _parameters(hints[field.name], field.metadata["omit"])
        elif "typer" in field.metadata:
            default = inspect.Parameter.empty if field.default is _REQUIRED else field.default
            kind, hint = inspect.Parameter.KEYWORD_ONLY, Annotated[hints[field.name], field.metadata["typer"]]
            yield inspect.Parameter(field.name, kind, default=default, annotation=hint)


def _build(request_type: type, values: Mapping[str, Any], omit: Collection[str] = ()) -> Any:
    """The request with what was typed."""
    hints, typed = get_type_hints(request_type), {}
    for field in dataclasses.fields(request_type):
        if "omit" in field.metadata:
            typed[field.name] = _build(hints[field.name], values, field.metadata["omit"])
        elif "typer" in field.metadata and field.name not in omit:
            value = values[field.name]
            typed[field.name] = from_home(value) if isinstance(value, Path) else value
    return request_type(**typed)
