"""The front as CSV has a line for each plan, as `--pick` counts them."""

import csv
import io

from planned import planned_record

from shoal.report import front_csv


def test_every_plan_has_a_line():
    record = planned_record()
    rows = list(csv.DictReader(io.StringIO(front_csv(record))))
    assert [int(row["number"]) for row in rows] == list(range(1, len(record.planning.front) + 1))
    point = record.planning.front[4]
    assert float(rows[4]["latency_ms"]) == round(point.latency_ms, 6 - len(str(int(point.latency_ms))))
    assert (int(rows[4]["macs"]), int(rows[4]["depth"])) == (point.macs, point.depth)
    assert rows[4]["removed"].split() == point.removed
    assert [span.split("+") for span in rows[4]["replaced"].split()] == point.replaced
    assert sum(int(row["chosen"]) for row in rows) <= 1


def test_a_run_without_a_plan_has_a_header_alone(record):
    assert front_csv(record.model_copy(update={"planning": None})).count("\n") == 1
