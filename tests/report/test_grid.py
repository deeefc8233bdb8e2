import io

from rich.console import Console

from shoal.report.grid import Grid, fit, say


def printed(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    return Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=40), raw


def test_long_cells_are_neither_cut_nor_wrapped() -> None:
    console, raw = printed()
    path = "a.very.long.path." * 8 + "end"
    grid = Grid(("name", "n"), frozenset({1}))
    grid.add(path, "1")
    grid.add("short", "22")
    grid.show(console)
    lines = raw.getvalue().decode().splitlines()
    assert lines[1] == f"{path}   1"
    assert lines[2].endswith(" 22")


def test_markup_and_emoji_codes_are_printed_as_they_are() -> None:
    console, raw = printed()
    say(console, "[red]x[/red] :smile: [link=y]")
    assert raw.getvalue().decode() == "[red]x[/red] :smile: [link=y]\n"


def test_control_codes_do_not_reach_the_terminal() -> None:
    console, raw = printed()
    say(console, "a\x1b[2Jb\nc")
    assert raw.getvalue().decode() == "a\\x1b[2Jb\\nc\n"


def test_a_terminal_without_unicode_gets_ascii() -> None:
    console, raw = printed("ascii")
    say(console, "98.8 % → 98.5 % 16 × 32 ■· 10⁻⁴ ü")
    assert raw.getvalue().decode() == "98.8 % -> 98.5 % 16 x 32 #. 10-4 \\xfc\n"
    assert fit("–", console) == "-"
