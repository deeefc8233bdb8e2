"""`--config FILE`: the options of a command from a YAML file, and the file that a run writes beside its result.

Every value is read as it would stand on the command line, and checked by the option it is for. Options that are typed
take precedence. What the file names is not thereby consented to: a file of somebody else may name code.
"""

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import typer

from shoal.errors import ShoalError, UsageError, did_you_mean
from shoal.files.reading import from_home, read_text, refusing

_BYTES = 2**20
_NULL = "tag:yaml.org,2002:null"
# What only who types may allow: to run code that a file names, to send code to another machine, or run what it sends.
_NEVER_READ = frozenset({"config", "trust_code", "send_code", "ray"})
# About the session or the place of a run, not about its result.
_NEVER_WRITTEN = _NEVER_READ | {"help", "out", "json", "debug", "dry_run"}


def load_configuration(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a command from a file; the callback of `--config`.

    Raises:
        typer.BadParameter: no such file, or it says what the command does not take.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        context.default_map = dict(_checked(context, path, _read(path)))
    except ShoalError as error:
        raise typer.BadParameter(f"{error.message}. {error.hint}".strip()) from error
    return path


def explicit_options(context: typer.Context) -> frozenset[str]:
    """The options that are on the command line or in its configuration, by the names of their fields."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    names = (name for name, source in sources.items() if source and source.name in ("COMMANDLINE", "DEFAULT_MAP"))
    return frozenset(name.rstrip("_") for name in names)


def configuration_text(context: typer.Context) -> str:
    """The options of this run as a file for `--config`: what was asked for, and as comments the defaults."""
    explicit = explicit_options(context)
    asked: dict[str, Any] = {"command": context.info_name}
    defaults: dict[str, Any] = {}
    for key, parameter in _parameters(context).items():
        value = context.params.get(parameter.name)
        if key in _NEVER_WRITTEN or value is None or value == ():
            continue
        chosen = asked if str(parameter.name).rstrip("_") in explicit else defaults
        chosen[key.replace("_", "-")] = _plain(value)
    comments = "".join(f"# {line}\n" for line in _as_yaml(defaults).splitlines())
    place = "# Paths are relative to the folder in which the command was started. The defaults that held:\n"
    return _as_yaml(asked) + (place + comments if defaults else "")


def equivalent_command(context: typer.Context) -> str:
    """The command line that does the same without a configuration."""
    explicit, words = explicit_options(context), []
    for key, parameter in _parameters(context).items():
        value = context.params.get(parameter.name)
        if key in _NEVER_READ or str(parameter.name).rstrip("_") not in explicit or value is None:
            continue
        if parameter.param_type_name == "argument":
            words += [str(entry) for entry in _listed(value)]
        elif isinstance(value, bool):
            words += (
                [parameter.opts[0] if value else parameter.secondary_opts[0]] if value or _has_no(parameter) else []
            )
        else:
            words += [word for entry in _listed(value) for word in (parameter.opts[0], str(entry))]
    return f"shoal {context.info_name} {shlex.join(words)}".strip()


def _read(path: Path) -> dict[str, str | list[str] | None]:
    """The keys of a file and their values as they are written."""
    import yaml  # not needed to show a help

    hint = "Write one `option: value` a line, as in the config.yaml of an output folder."
    with refusing(UsageError, f"'{path}' cannot be read as a configuration", hint):
        text = read_text(from_home(path), _BYTES)
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"'{path}'{line}: no YAML: {error.problem or error.context}", hint) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"'{path}' is not a list of options with their values", hint)
    values: dict[str, str | list[str] | None] = {}
    for key_node, node in root.value:
        key = str(key_node.value).replace("-", "_") if isinstance(key_node, yaml.ScalarNode) else ""
        entries = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not key or not all(isinstance(entry, yaml.ScalarNode) for entry in entries):
            raise UsageError(f"'{path}', line {node.start_mark.line + 1}: expected a value, or a list of values", hint)
        if key in values:
            raise UsageError(f"'{path}' names '{key_node.value}' twice", "Leave one of them.")
        texts = [entry.value for entry in entries]
        values[key] = texts if isinstance(node, yaml.SequenceNode) else None if node.tag == _NULL else texts[0]
    return values


def _checked(
    context: typer.Context, path: Path, values: dict[str, str | list[str] | None]
) -> Iterator[tuple[str, Any]]:
    """The values by the names of their parameters, each as its option takes it."""
    command = values.pop("command", None) or context.info_name
    if not isinstance(command, str):
        raise UsageError(f"'{path}' names several commands", "One file is for one command.")
    if command != context.info_name:
        raise UsageError(f"'{path}' is for `shoal {command}`", f"shoal {command} --config {path}")
    parameters = {key: value for key, value in _parameters(context).items() if key not in _NEVER_READ}
    for key, value in values.items():
        if key in _NEVER_READ:
            raise UsageError(f"'{path}' sets '{key.replace('_', '-')}', which no file may", "Type it.")
        if key not in parameters:
            names = [name.replace("_", "-") for name in parameters]
            raise UsageError(
                f"'{path}' sets '{key.replace('_', '-')}', which `shoal {context.info_name}` does not take",
                did_you_mean(key.replace("_", "-"), names),
            )
        if value is not None:
            yield str(parameters[key].name), _converted(context, path, parameters[key], value)


def _converted(context: typer.Context, path: Path, parameter: Any, value: str | list[str]) -> Any:
    takes_several = parameter.multiple or parameter.nargs == -1
    plain = _listed(value) if takes_several else value if isinstance(value, str) else ",".join(value)
    message = f"'{path}' sets {parameter.opts[0].lstrip('-')} to {value!r}"
    try:
        typed = parameter.process_value(context, plain)
    except typer.BadParameter as error:
        raise UsageError(f"{message}: {error.message}") from error
    # Options whose text names several, as --mean and --blocks, take a list; a number, a path or MODEL does not.
    is_text_option = isinstance(typed, str) and parameter.param_type_name == "option"
    if isinstance(value, list) and not takes_several and not is_text_option:
        raise UsageError(f"{message}, expected one value", "Leave one of them.")
    return plain


def _parameters(context: typer.Context) -> dict[str, Any]:
    """The parameters of the command by the keys of a file: options by their long flag, arguments by their name."""
    keys = {}
    for parameter in context.command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        keys[(flags[0].lstrip("-") if flags else str(parameter.name)).replace("-", "_")] = parameter
    return keys


def _as_yaml(values: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)) if values else ""


def _plain(value: Any) -> Any:
    """A value as YAML has it: paths are text."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float)) else str(value)


def _listed(value: Any) -> Collection[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _has_no(parameter: Any) -> bool:
    return bool(parameter.secondary_opts)
