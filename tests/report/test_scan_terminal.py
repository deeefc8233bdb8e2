import io

import pytest
from rich.console import Console
from scanned import ODD, evil_scan, long_scan, make_scan, plain_chain, with_second

from shoal.record import ScanRecord
from shoal.report import show_scan


def shown(record: ScanRecord, **options: object) -> str:
    file = io.StringIO()
    show_scan(record, "shoal-runs/scan-1", Console(file=file, width=60, **options))
    return file.getvalue()


def test_the_main_things_of_a_scan_are_said() -> None:
    text = shown(make_scan())
    assert text.startswith("9 of 27 residual blocks are trivial; 11 are non-trivial,")
    assert "Whole network: top-1 98.0 % (95 % interval 96.1 – 99.0 %)" in text
    assert "stage 1  ■·?·■·?■?" in text
    assert "stages.1.0  non-trivial               42.00  36.90 to 47.10         1.80" in text
    assert "56 layers, each with its kernel set to zero: 31 non-trivial, 0 undecided, 25 trivial" in text
    assert "4 of the 4 layers that change the number of channels" in text
    assert "mean_response              0.97   0.92 to 0.99" in text
    assert "Note: 110 ablations were compared; familywise verdicts" in text
    assert text.endswith("Report: shoal-runs/scan-1/report.html\n")


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_a_piped_scan_is_plain_and_has_no_none(make) -> None:
    text = shown(make())
    assert "\x1b" not in text
    assert not {"None", "nan", "inf"} & set(text.split())


def test_a_terminal_has_styles() -> None:
    assert "\x1b[" in shown(make_scan(), force_terminal=True, color_system="standard")


def test_of_many_blocks_the_ends_are_shown() -> None:
    lines = shown(long_scan()).splitlines()
    rows = [line for line in lines if line.startswith("encoder") and "matter" not in line]
    assert len(rows) == len(set(rows)) == 30
    assert all(" trivial " in line for line in rows[15:])
    assert "The 15 most and the 15 least important; the report has the 171 others." in lines


def test_a_plain_network_shows_its_layers() -> None:
    text = shown(plain_chain())
    assert "9 layers, each with its kernel set to zero" in text
    assert "rank correlation" not in text
    assert "stage" not in text


def test_the_second_data_set_and_what_is_missing_are_said() -> None:
    text = shown(with_second())
    assert "another verdict on digits as JPEG than on digits" in text
    assert "Not measured on all samples: 2, named in the report" in text


def test_markup_of_a_name_is_printed_as_it_is() -> None:
    assert "<img src=x onerror=alert(1)>" in shown(evil_scan())
