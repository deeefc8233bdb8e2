import io

import pytest
from handmade import bare_record, language_record, make_blocks, make_record
from planned import planned_record
from rich.console import Console

from shoal.record import BlockRecord, Record
from shoal.report.terminal import show, show_certificate, show_chain


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
    assert lines[at + 1] == "The tables guessed 51.4 ms, measured 52.3 ms (+1.7 %)"
    assert lines[at + 2] == ""


def test_a_plan_from_latencies_of_elsewhere_says_so() -> None:
    assert "The latencies of the tables were not measured in this run; they come from a file." in shown(
        planned_record(latency_source="a file")
    )


def test_a_front_of_one_offers_no_other() -> None:
    text = shown(planned_record(front=planned_record().planning.front[:1], rounds=[]))
    assert "Front: 1 plan, 32.4 % of the latency\n" in text
    assert "--pick" not in text
    assert "guessed" not in text


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
    assert file.getvalue() == "No residual block found.\n"


def test_certificate_lists_its_premises(record: Record) -> None:
    file = io.StringIO()
    show_certificate(record.certificate, Console(file=file))
    lines = file.getvalue().splitlines()
    assert lines[1:] == [
        "  Why not identical: blocks with non-zero branches were removed",
        "  Premise: eval mode",
        "  Premise: batch 128 on cpu in float32",
    ]
