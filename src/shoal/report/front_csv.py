"""The front of a run as a table for other programs: a line for each plan, numbered as `--pick` counts them."""

import csv
import io

from shoal.record import Record
from shoal.report.plan import plans_of

_COLUMNS = (
    *("number", "chosen", "latency_ms", "latency_share", "damage", "macs", "params", "depth"),
    *("removed", "replaced", "kinds"),
)


def front_csv(record: Record) -> str:
    """The front as CSV; several paths in a cell are parted by blanks, spans by ' + ' within."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    for plan in plans_of(record):
        point = plan.point
        spans = " ".join("+".join(span) for span in point.replaced)
        share = "" if plan.share is None else f"{plan.share:.6g}"
        counts = (point.macs, point.params, point.depth)
        cells = (plan.number, int(plan.chosen), f"{point.latency_ms:.6g}", share, f"{point.damage:.6g}", *counts)
        table.writerow((*cells, " ".join(point.removed), spans, " ".join(point.kinds)))
    return stream.getvalue()
