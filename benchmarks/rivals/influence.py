"""Removal in the order of block influence: first the block that turns the stream least.

Source: Men et al. 2024, ShortGPT, arXiv:2403.03853. One pass over all calibration images, no re-scoring.
"""

import json
from pathlib import Path

from rivals.ground import Ground
from rivals.made import Made, Unreached
from rivals.prefixes import shortest_prefix
from shoal.files.writing import write_text
from shoal.scanning.scores.collect import block_scores


def influence(ground: Ground, target: float) -> Made:
    """The shortest beginning of the order that meets `target`.

    The score is not defined for blocks that change the shape of the stream: those stay.
    """
    folder = ground.folder / "influence"
    folder.mkdir(parents=True, exist_ok=True)
    scores = _scores(ground, folder / "scores.json")
    order = sorted(scores, key=lambda path: scores[path])
    if not order:
        raise Unreached(None, "no removable block has a block influence")
    return shortest_prefix(ground, order, target, folder)


def _scores(ground: Ground, path: Path) -> dict[str, float]:
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    ground.progress("block influence", 0, 1)
    measured = block_scores(ground.graph, ground.labelled)
    removable = [block.path for block in ground.graph.chain.removable]
    scores = {
        path: measured[path]["block_influence"] for path in removable if "block_influence" in measured.get(path, {})
    }
    write_text(path, json.dumps(scores, indent=1) + "\n")
    return scores
