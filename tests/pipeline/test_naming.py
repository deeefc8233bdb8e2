import torch

import halves
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.pipeline.naming import removal_notes
from shoal.plan import Remove


def test_units_are_said_with_the_modules_that_were_theirs():
    anatomy = analyze(halves.Halves().eval(), Batch((halves.samples(),)))
    removals = [Remove(path="blocks.0"), Remove(path="blocks.1", unit=0), Remove(path="blocks.2", unit=1)]
    assert removal_notes(anatomy, removals) == [
        "single units were removed, the rest of their blocks stays: blocks.1#0 (norm1, mixer); "
        "blocks.2#1 (norm2, fc1, act, fc2)"
    ]
    assert removal_notes(anatomy, removals[:1]) == []


def test_blocks_that_took_their_norms_along_are_said():
    torch.manual_seed(0)
    anatomy = analyze(networks.PostNormNet().eval(), Batch((torch.randn(3, 5, 8),)))
    (note,) = removal_notes(anatomy, [Remove(path="encoder.layers.2", norms="drop")])
    assert note.startswith("with these blocks the norms behind their additions went")
    assert note.endswith(": encoder.layers.2")
