import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.parameters import argument, command, command_line, nested, option
from shoal.errors import UsageError


@dataclass(frozen=True)
class Inner:
    size: int = option("--size", "A size.", 3, min=1)
    seed: int = option("--seed", "A seed.", 0)


@dataclass(frozen=True, kw_only=True)
class Request:
    model: str = argument("MODEL", "A model.")
    where: Path | None = option("--from", "A folder.", None, metavar="DIR")
    teacher: str = option("--teacher", "Who teaches.")
    names: list[str] | None = option("--name", "Repeat it.", None)
    side: bool = option("--side/--no-side", "A switch.", True)
    inner: Inner = nested(Inner, omit=("seed",))
    command: str = command_line()


def run(*words):
    """What the function gets: (exit code, session, request, output)."""
    app, seen = typer.Typer(), []

    @command(app)
    def go(session, request: Request) -> int:
        """Do it."""
        seen.append((session, request))
        if request.model == "refused":
            raise UsageError("refused", "Give another.")
        return 7

    result = CliRunner().invoke(app, list(words), standalone_mode=False)
    return result, *(seen[0] if seen else (None, None))


def test_fields_are_arguments_and_options(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["shoal", "go", "a b"])
    result, session, request = run(
        "m", "--teacher", "t", "--from", "d", "--name", "x", "--name", "y", "--no-side", "--size", "5", "--debug"
    )
    assert (result.return_value, result.exit_code) == (7, 0)
    assert request == Request(
        model="m",
        where=Path("d"),
        teacher="t",
        names=["x", "y"],
        side=False,
        inner=Inner(5),
        command="shoal go 'a b'",
    )
    assert session.debug
    assert not session.as_json
    assert session.explicit == {"model", "where", "teacher", "names", "side", "size", "debug"}


def test_defaults_are_those_of_the_fields():
    _, session, request = run("m", "--teacher", "t")
    assert (request.where, request.names, request.side, request.inner) == (None, None, True, Inner())
    assert session.explicit == {"model", "teacher"}


@pytest.mark.parametrize(
    "words", [(), ("m",), ("m", "--teacher", "t", "--size", "0"), ("m", "--teacher", "t", "--seed", "1")]
)
def test_what_is_missing_out_of_range_or_left_out_is_wrong_use(words):
    result, _, request = run(*words)
    assert result.exit_code != 0 or result.exception is not None
    assert request is None


def test_errors_become_exit_codes_and_help_is_the_fields():
    result, _, _ = run("refused", "--teacher", "t", "--json")
    assert result.exit_code == 2
    assert '"message": "refused"' in result.output
    text, _, _ = run("--help")
    assert all(word in text.output for word in ("Do it.", "MODEL", "--from", "DIR", "A size.", "--json"))
