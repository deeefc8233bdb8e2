import pytest

from shoal.record import BlockRecord, Machine
from shoal.training_record import PrunedBlock, TrainRecord


def block(path):
    shape = {"in_shape": [1], "out_shape": [1], "params": 1, "removable": True}
    return BlockRecord(path=path, stage=1, kind="B", shortcut="identity", activation=None, **shape)


def lost(path):
    numbers = dict.fromkeys(("largest", "weight_before", "weight_left", "opens_on_test", "largest_on_test"), 0.0)
    return PrunedBlock(path=path, stage=1, epoch=1, at_end=False, **numbers)


@pytest.mark.parametrize(("blocks", "gone", "share"), [(4, 3, 0.75), (4, 0, 0.0), (0, 0, 0.0)])
def test_the_share_of_lost_blocks(blocks, gone, share):
    machine = dict.fromkeys(("device", "processor", "system", "python", "torch", "shoal"), "x")
    record = TrainRecord.model_construct(
        blocks=[block(str(i)) for i in range(blocks)],
        lost=[lost(str(i)) for i in range(gone)],
        machine=Machine(cores=1, threads=1, **machine),
    )
    assert record.share_lost == share
