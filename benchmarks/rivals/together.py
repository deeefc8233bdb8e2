"""All networks of a point, timed side by side: the original and every method in turns in one run."""

import json
from pathlib import Path
from typing import Any

from rivals import METHODS
from rivals.cell import Place, plain
from rivals.ground import Ground, share_of
from rivals.keeping import reload
from shoal.files.writing import write_text

_SECONDS = 4.0


def side_by_side(ground: Ground, work: Path, point: float) -> dict[str, Any]:
    """Latencies and shares of all networks kept at this point; kept too, and measured again when one is another."""
    cells = {method: Place(work, point, method).finished() for method in METHODS}
    networks = {method: cell["network"] for method, cell in cells.items() if cell and cell["reached"]}
    path = work / f"point-{point:g}" / "together.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["networks"] == networks:
            return kept
    if not networks:
        return {"networks": {}, "latency": {}, "shares": {}}
    rebuilt = {method: reload(ground, Place(work, point, method).folder) for method in networks}
    ground.progress(f"timing {len(rebuilt)} networks side by side", 0, 1)
    times = ground.times(rebuilt, _SECONDS)
    shares = {method: share_of(times[method]) for method in networks}
    result = {"networks": networks, "latency": plain(times), "shares": shares}
    write_text(path, json.dumps(result, indent=1) + "\n")
    return result
