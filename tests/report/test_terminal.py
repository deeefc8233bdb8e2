import io

import pytest
from handmade import bare_record, language_record, make_blocks, make_record
from planned import planned_record
from rich.console import Console
from scanned import ODD, evil_scan, long_scan, make_scan, plain_chain, with_second
from trained import make_training

from shoal.record import BlockRecord, Record, ScanRecord
from shoal.report import show, show_certificate, show_chain, show_scan, show_training
from shoal.report.terminal import TextTable, print_line, printable


def shown(record: Record, **options: object) -> str:
    file = io.StringIO()
    show(record, "shoal-runs/compress-1", Console(file=file, width=60, **options))
    return file.getvalue()


def test_the_main_things_are_said(record: Record) -> None:
    text = shown(record)
    assert text.startswith("14 of 27 blocks removed; top-1 98.8 % → 98.5 % on 400 test images;")
    assert "stage 1  ■·■····■■" in text
    assert "Certificate: A different function." in text
    assert "Warning: Only 400 test images" in text
    assert text.endswith("Report: shoal-runs/compress-1/report.html\n")


def test_a_language_model_is_told_by_its_perplexity() -> None:
    text = " ".join(shown(language_record()).split())
    assert "Perplexity 22.5 (20.3 – 25.0) 24.7 (22.0 – 27.9) 9.9 % more" in text
    assert "Perplexity, paired by sequence: 1.10 times the original's, 95 % interval 1.07 – 1.12" in text


def test_piped_text_is_plain(record: Record) -> None:
    assert "\x1b" not in shown(record)


def test_no_color_is_respected(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = shown(record, force_terminal=True, color_system="standard")
    assert "\x1b[33m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in shown(record, force_terminal=True, color_system="standard")


def test_a_missed_goal_is_said() -> None:
    text = shown(make_record(reached=False, message="At most 6 blocks could go."))
    assert "The goal was not reached. At most 6 blocks could go." in text


def test_missing_numbers_leave_no_none() -> None:
    text = shown(bare_record())
    assert "None" not in text
    assert "nan" not in text


def test_the_plan_takes_two_lines() -> None:
    lines = shown(planned_record()).splitlines()
    at = lines.index("Front: 24 plans, 32.4 % to 96.0 % of the latency; --pick N takes another")
    assert lines[at + 1] == "Predicted 51.4 ms, measured 52.3 ms (+1.7 %)"
    assert lines[at + 2] == ""


def test_a_plan_from_latencies_of_elsewhere_says_so() -> None:
    assert "The predicted latencies were not measured in this run; source: a file." in shown(
        planned_record(latency_source="a file")
    )


def test_a_front_of_one_offers_no_other() -> None:
    text = shown(planned_record(front=planned_record().planning.front[:1], rounds=[]))
    assert "Front: 1 plan, 32.4 % of the latency\n" in text
    assert "--pick" not in text
    assert "Predicted" not in text


def test_without_a_plan_nothing_is_said_of_one(record: Record) -> None:
    assert "Front" not in shown(record)


def test_chain_shows_whole_paths_and_reasons() -> None:
    blocks = make_blocks()
    blocks[0] = blocks[0].model_copy(update={"path": "encoder." * 20 + "block", "activation": None})
    file = io.StringIO()
    show_chain(blocks, Console(file=file, width=40))
    text = file.getvalue()
    assert "encoder." * 20 + "block" in text
    assert "no: the shortcut is a projection" in text
    assert "16 × 32 × 32 → 32 × 16 × 16" in text
    assert "25 of 27 blocks can be removed." in text


def test_a_network_without_blocks() -> None:
    file = io.StringIO()
    blocks: list[BlockRecord] = []
    show_chain(blocks, Console(file=file))
    assert file.getvalue() == "No residual block detected.\n"


def test_certificate_lists_its_premises(record: Record) -> None:
    file = io.StringIO()
    show_certificate(record.certificate, Console(file=file))
    lines = file.getvalue().splitlines()
    assert lines[1:] == [
        "  Why not identical: blocks with non-zero branches were removed",
        "  Assumption: eval mode",
        "  Assumption: batch 128 on cpu in float32",
    ]


def scan_shown(record: ScanRecord, **options: object) -> str:
    file = io.StringIO()
    show_scan(record, "shoal-runs/scan-1", Console(file=file, width=60, **options))
    return file.getvalue()


def test_the_main_things_of_a_scan_are_said() -> None:
    text = scan_shown(make_scan())
    assert text.startswith("9 of 27 residual blocks are trivial; 11 are non-trivial,")
    assert "Full network: top-1 98.0 % (95 % interval 96.1 – 99.0 %)" in text
    assert "stage 1  ■·?·■·?■?" in text
    assert "stages.1.0  non-trivial               42.00  36.90 to 47.10         1.80" in text
    assert "56 layers, each with its kernel zeroed: 31 non-trivial, 0 undecided, 25 trivial" in text
    assert "4 of the 4 layers that change the number of channels" in text
    assert "mean_response              0.97   0.92 to 0.99" in text
    assert "Note: 110 ablations were compared; familywise verdicts" in text
    assert text.endswith("Report: shoal-runs/scan-1/report.html\n")


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_a_piped_scan_is_plain_and_has_no_none(make) -> None:
    text = scan_shown(make())
    assert "\x1b" not in text
    assert not {"None", "nan", "inf"} & set(text.split())


def test_a_terminal_has_styles() -> None:
    assert "\x1b[" in scan_shown(make_scan(), force_terminal=True, color_system="standard")


def test_of_many_blocks_the_ends_are_shown() -> None:
    lines = scan_shown(long_scan()).splitlines()
    rows = [line for line in lines if line.startswith("encoder") and "matter" not in line]
    assert len(rows) == len(set(rows)) == 30
    assert all(" trivial " in line for line in rows[15:])
    assert "The 15 most and the 15 least important; the report has the other 171." in lines


def test_a_plain_network_shows_its_layers() -> None:
    text = scan_shown(plain_chain())
    assert "9 layers, each with its kernel zeroed" in text
    assert "rank correlation" not in text
    assert "stage" not in text


def test_the_second_data_set_and_what_is_missing_are_said() -> None:
    text = scan_shown(with_second())
    assert "another verdict on digits as JPEG than on digits" in text
    assert "Not measured on all samples: 2, named in the report" in text


def test_markup_of_a_name_is_printed_as_it_is() -> None:
    assert "<img src=x onerror=alert(1)>" in scan_shown(evil_scan())


def training_shown(record, width=100):
    out = io.StringIO()
    show_training(record, "o", Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_a_screenful():
    said = training_shown(make_training())
    assert said.startswith("2 of 6 blocks pruned in training")
    assert "full, frozen gates" in said
    assert "Warning: 2 of 2 lost blocks" in said
    assert "o/report.html" in said
    assert len(said.splitlines()) < 30


def test_markup_in_a_name_is_text():
    assert "[bold]" in training_shown(make_training(warnings=["[bold]x[/bold]"]))


def printed(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    return Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=40), raw


def test_long_cells_are_neither_cut_nor_wrapped() -> None:
    console, raw = printed()
    path = "a.very.long.path." * 8 + "end"
    table = TextTable(console, "name", "n", right=(1,))
    table.add(path, "1")
    table.add("short", "22")
    table.print()
    lines = raw.getvalue().decode().splitlines()
    assert lines[1] == f"{path}   1"
    assert lines[2].endswith(" 22")


def test_a_long_cell_does_not_leave_blanks_behind_the_others() -> None:
    console, raw = printed()
    table = TextTable(console, "block", "removable")
    table.add("a", "no: " + "a long reason " * 9, style="dim")
    table.add("b", "yes")
    table.print()
    lines = raw.getvalue().decode().splitlines()
    assert lines[2:] == ["b      yes", ""]
    assert all(line == line.rstrip() for line in lines)


def test_markup_and_emoji_codes_are_printed_as_they_are() -> None:
    console, raw = printed()
    print_line(console, "[red]x[/red] :smile: [link=y]")
    assert raw.getvalue().decode() == "[red]x[/red] :smile: [link=y]\n"


def test_control_codes_do_not_reach_the_terminal() -> None:
    console, raw = printed()
    print_line(console, "a\x1b[2Jb\nc")
    assert raw.getvalue().decode() == "a\\x1b[2Jb\\nc\n"


def test_a_terminal_without_unicode_gets_ascii() -> None:
    console, raw = printed("ascii")
    print_line(console, "98.8 % → 98.5 % 16 × 32 ■· 10⁻⁴ ü")
    assert raw.getvalue().decode() == "98.8 % -> 98.5 % 16 x 32 #. 10-4 \\xfc\n"
    assert printable("–", console) == "-"
