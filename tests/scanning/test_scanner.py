import copy
import dataclasses

import pytest
import torch

import language
import tiny
from elsewhere import Elsewhere
from networks import PlainNet
from shoal.errors import DataError, FolderError, UsageError
from shoal.measure.output_reading import OutputReading, Reading
from shoal.progress import Callbacks, NullJournal
from shoal.record import ScanRecord
from shoal.scanning import ScanConfig, ScanRunInfo, scan
from shoal.scanning.scanner import ScanAccumulator


def loader(count=3, seed=0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(20, 1, 8, 8, generator=generator)
        with torch.no_grad():
            y = tiny.network()(x).argmax(dim=1)
        made.append((x, y) if labels else x)
    return made


class Memory:
    """A journal in memory that can break off after so many lines."""

    def __init__(self, most=None):
        self.lines, self.most = [], most

    def append(self, line):
        self.lines.append(copy.deepcopy(line))
        if self.most is not None and len(self.lines) >= self.most:
            raise KeyboardInterrupt

    def measured(self):
        return self.lines


def figures(record):
    return {
        **{f"{block.path} {name}": one for block in record.blocks for name, one in block.ablations.items()},
        **{layer.path: layer.ablations["kernel"] for layer in record.layers},
    }


def test_dead_blocks_do_nothing_and_the_others_do_something():
    record = scan(tiny.network(), loader())
    by_path = {block.path: block for block in record.blocks}
    for path in ("blocks.1", "blocks.4"):
        dead = by_path[path].ablations["block"]
        assert (dead.kl, dead.changed, dead.top1_drop, dead.loss_increase) == (0, 0, 0, 0)
        assert by_path[path].scores["largest_response"] == 0
    assert all(by_path[f"blocks.{k}"].ablations["block"].kl > 0 for k in (0, 2, 3, 5))
    assert by_path["blocks.0"].ablations["branch"] == by_path["blocks.0"].ablations["block"]
    assert record.baseline.top1 == 1.0
    assert record.baseline.n == 60


def test_every_figure_is_that_of_a_whole_forward_with_the_change_made_by_hand():
    data = loader()
    record = scan(tiny.network(), data, config=ScanConfig(scores=False))
    model = tiny.network()
    with torch.no_grad():
        model.blocks[2].conv1.weight.zero_()
        losses = torch.cat([torch.nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in data])
        right = torch.cat([model(x).argmax(1) == y for x, y in data])
    found = next(layer for layer in record.layers if layer.path == "blocks.2.conv1").ablations["kernel"]
    assert found.loss == pytest.approx(float(losses.double().mean()), rel=1e-6)
    assert found.top1 == pytest.approx(float(right.double().mean()))


def test_the_record_survives_json_and_says_how_many_comparisons_there_were():
    record = scan(tiny.network(), loader())
    assert ScanRecord.model_validate_json(record.model_dump_json()) == record
    assert record.comparisons == 6 * 2 + 1 + 12 + 1
    assert f"{record.comparisons} ablations were compared" in record.notes[0]


def test_without_labels_verdicts_are_about_the_squared_error():
    record = scan(tiny.network(), loader(labels=False))
    assert (record.metric, record.tolerance) == ("mse", 0.01)
    assert record.outputs.outputs[0].task == "values"
    assert any("read as values" in note for note in record.notes)
    one = record.blocks[0].ablations["block"]
    assert (one.top1, one.changed) == (None, None)
    assert one.loss_increase == pytest.approx(one.kl)


def test_an_interrupted_scan_goes_on_to_the_same_figures():
    whole = scan(tiny.network(), loader(), callbacks=Callbacks(journal=Memory()))
    broken = Memory(most=2)
    with pytest.raises(KeyboardInterrupt):
        scan(tiny.network(), loader(), callbacks=Callbacks(journal=broken))
    broken.most = None
    runs = []
    resumed = scan(tiny.network(), loader(), callbacks=Callbacks(lambda stage, done, total: runs.append(done), broken))
    assert figures(resumed) == figures(whole)
    assert resumed.baseline == whole.baseline
    assert len(broken.lines) == 3


@pytest.mark.parametrize("fast", [False, True])
def test_the_record_is_the_same_whoever_works_in_whatever_order(fast):
    data, config = loader(count=6 if fast else 3), ScanConfig(fast=fast)
    here = scan(tiny.network(), data, config=config)
    there = scan(tiny.network(), data, config=dataclasses.replace(config, workers=Elsewhere()))
    volatile = {"seconds", "created"}
    assert there.model_dump(exclude=volatile) == here.model_dump(exclude=volatile)


def test_what_workers_handed_in_before_a_crash_is_not_measured_again():
    whole = scan(tiny.network(), loader())
    broken = Memory(most=4)
    with pytest.raises(KeyboardInterrupt):
        scan(tiny.network(), loader(), config=ScanConfig(workers=Elsewhere()), callbacks=Callbacks(journal=broken))
    broken.most, before = None, len(broken.lines)
    resumed = scan(tiny.network(), loader(), callbacks=Callbacks(journal=broken))
    assert figures(resumed) == figures(whole)
    assert resumed.baseline == whole.baseline
    measured = [(line["batch"], key) for line in broken.lines for key in line["sums"] if key]
    assert before < len(broken.lines)
    assert len(measured) == len(set(measured)) == 3 * whole.comparisons


def test_a_scan_that_version_0_1_0_began_goes_on():
    memory = Memory()
    whole = scan(tiny.network(), loader(), callbacks=Callbacks(journal=memory))
    sums = {}
    for line in memory.lines[:2]:
        for key, plain in line["sums"].items():
            sums[key] = {name: sums.get(key, {}).get(name, 0) + value for name, value in plain.items()}
    own = sums.pop("")
    former = Memory()
    former.lines = [{"kind": "scan", "name": "first", "batches": 2, "stopped": [], "own": own, "tallies": sums}]
    resumed = scan(tiny.network(), loader(), callbacks=Callbacks(journal=former))
    assert figures(resumed) == figures(whole)
    assert [line["batch"] for line in former.lines[1:]] == [2]


def test_a_damaged_line_of_the_journal_is_refused():
    memory = Memory()
    memory.lines = [{"kind": "scored", "name": "first", "batch": 0, "classes": 3, "sums": {"": {"odd": 1}}}]
    with pytest.raises(FolderError, match="journal of the scan is damaged"):
        scan(tiny.network(), loader(), callbacks=Callbacks(journal=memory))


def test_stacked_figures_agree_to_rounding():
    alone = scan(tiny.network(), loader(), config=ScanConfig(layers=False, scores=False))
    together = scan(tiny.network(), loader(), config=ScanConfig(layers=False, scores=False, stack=4))
    for path, one in figures(alone).items():
        assert figures(together)[path].loss == pytest.approx(one.loss, rel=1e-5)


def test_fast_stops_what_is_clear_and_says_so():
    data = loader(count=12)
    record = scan(tiny.network(), data, config=ScanConfig(fast=True, scores=False))
    stopped = set(record.early_stopped)
    assert stopped
    full = figures(scan(tiny.network(), data, config=ScanConfig(scores=False)))
    for key, one in figures(record).items():
        if one.n < 240:
            assert any(key.split()[0] in name for name in stopped)
            assert one.verdict == full[key].verdict
    assert any("clear early" in note for note in record.notes)


def test_a_second_data_set_shows_where_verdicts_part():
    shifted = [(3 * x + 1, y) for x, y in loader(seed=5)]
    record = scan(
        tiny.network(), loader(), also=shifted, config=ScanConfig(scores=False, run_info=ScanRunInfo(also="shifted"))
    )
    assert record.also.data == "shifted"
    assert record.also.baseline.n == 60
    first, second = {}, {}
    for blocks, verdicts in ((record.blocks, first), (record.also.blocks, second)):
        verdicts.update({f"block:{block.path}": block.ablations["block"].verdict for block in blocks})
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {key for key in record.also.differing if key.startswith("block:")}


def test_a_plain_network_has_kernels_only():
    record = scan(PlainNet().eval(), loader())
    assert record.blocks == []
    assert len(record.layers) == 3


def test_nothing_to_scan_is_said():
    with pytest.raises(DataError, match="nothing to ablate"):
        scan(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()), loader(labels=False))
    with pytest.raises(DataError, match="no data to scan on"):
        scan(tiny.network(), [])


@pytest.mark.parametrize("tolerance", [0, -1, 101])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(UsageError, match="the tolerance is"):
        ScanConfig(tolerance=tolerance)
    with pytest.raises(UsageError, match="stack is 0"):
        ScanConfig(stack=0)


def test_the_tolerance_is_in_points_with_labels_and_in_nats_without():
    for labels, expected in ((True, 0.02), (False, 2.0)):
        record = scan(tiny.network(), loader(1, labels=labels), config=ScanConfig(tolerance=2.0, scores=False))
        assert record.tolerance == pytest.approx(expected)
    reading = Reading((OutputReading("", "classes", "as the test says"),))
    assert ScanAccumulator("first", ScanConfig(), reading, 1, NullJournal()).tolerance == 0.01


def test_what_stands_at_padding_changes_no_figure():
    ids, mask = language.tokens(4, 10), (torch.arange(10) < torch.tensor([[10], [7], [4], [9]])).long()
    found = []
    for padding in (4, 50):
        batch = {"input_ids": torch.where(mask == 1, ids, padding), "attention_mask": mask, "labels": ids}
        settings = ScanConfig(layers=False, scores=False)
        record = scan(language.llama(), [batch], config=settings)
        found.append([(one.kl, one.loss, one.changed) for block in record.blocks for one in block.ablations.values()])
    assert found[0]
    assert all(one == pytest.approx(other, rel=1e-6) for one, other in zip(*found, strict=True))
