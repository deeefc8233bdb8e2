"""Blocks that return the stream in a tuple, and are asked for attributes by the code that calls them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shoal import load
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.template import Opaque, TensorRef
from shoal.pipeline import Budget, CompressConfig, compress
from shoal.plan import Replace
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, refit_
from shoal.replace.output_format import PLAIN, OutputFormat, copy_format_, infer_format, install_
from shoal.surgery.replace import replace_spans_


class TupleBlock(nn.Module):
    """Returns what it was told the size is, the stream, and nothing; is asked for its kind."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.up, self.down = kind, nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[Tensor, None]]:
        return size, (x + self.down(torch.relu(self.up(x))), None)


class TupleNet(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TupleBlock(width, kind) for kind in ("full", "half", "full", "half"))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        for block in self.blocks:
            scale = {"full": 1.0, "half": 0.5}[block.kind]
            size, (x, _) = block(scale * x, size)
        return self.head(x.mean(dim=1))


class Plainer(TupleNet):
    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        for block in self.blocks:
            assert block.kind
            size, (x, _) = block(x, size)
        return self.head(x.mean(dim=1))


def batches(count: int = 4, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [Batch((torch.randn(size, 5, 6, generator=generator),)) for _ in range(count)]


@pytest.fixture
def network() -> Plainer:
    torch.manual_seed(0)
    return Plainer().eval()


def test_a_form_takes_the_stream_out_and_puts_it_back() -> None:
    form = infer_format(((4, 5), [TensorRef(7), TensorRef(9), "x"], True), 7)
    assert form is not None
    assert form.index_path == (1, 0)
    assert form.stream(((0, 0), ["stream", "other"])) == "stream"
    assert form.wrap("new") == ((4, 5), ["new", None, "x"], True)  # type: ignore[arg-type]
    assert form.wrap_forward(lambda x, **named: x + named["more"])(1, more=2) == ((4, 5), [3, None, "x"], True)


def test_a_stream_alone_stays_alone() -> None:
    assert infer_format(TensorRef(7), 7) == PLAIN
    x = torch.ones(2)
    assert PLAIN.stream(x) is x
    assert PLAIN.wrap(x) is x
    assert PLAIN.wrap_forward(torch.relu) is torch.relu


@pytest.mark.parametrize(
    "output",
    [
        TensorRef(1),
        (TensorRef(1), None),
        {"x": TensorRef(7)},
        (TensorRef(7), Opaque("Cache")),
        (TensorRef(7), TensorRef(3)),
    ],
)
def test_what_a_stand_in_cannot_give_back_has_no_form(output: object) -> None:
    assert infer_format(output, 7, entering=[3]) is None


def test_such_blocks_are_steps_that_follow_each_other(network: Plainer) -> None:
    anatomy = analyze(network, batches()[0].take(2))
    line = build_segments(anatomy)
    assert line.paths == tuple(f"blocks.{number}" for number in range(4))
    assert line.is_contiguous == (False, True, True, True)
    assert {step.output_format for step in line.segments} == {OutputFormat(((5, 6), (None, None)), (1, 0))}


def test_stand_ins_answer_as_the_blocks_did(network: Plainer) -> None:
    given = batches()
    anatomy = analyze(network, given[0].take(2))
    spans = {(one.start, one.stop): one for one in find_spans(anatomy, build_segments(anatomy), 2)}
    fitted = fit_all(anatomy, given, [ReplacementSpec(spans[0, 2], "linear")])
    student = analyze(copy.deepcopy(network), given[0].take(2))
    actions = [Replace(paths=list(one.span.paths), stand_in=one.stand_in) for one in fitted]
    cut = replace_spans_(student, actions, {one.span.paths[0]: copy.deepcopy(one.module) for one in fitted})
    assert [getattr(block, "kind", None) for block in cut.blocks] == ["full", "half", "full", "half"]
    refit_(anatomy, cut, fitted, given)
    copied = copy.deepcopy(cut)
    with torch.no_grad():
        x = given[0].args[0]
        stream = cut.blocks[0](x, (5, 6))[1][0]
        for block in network.blocks[2:]:
            kept = dict(cut.blocks.named_children())[next(n for n, m in network.blocks.named_children() if m is block)]
            stream = kept(stream, (5, 6))[1][0]
        torch.testing.assert_close(cut(x), cut.head.forward(stream.mean(dim=1)))  # which is refitted too
        assert torch.equal(copied(x), cut(x))


def test_compress_by_macs(network: Plainer) -> None:
    result = compress(network, batches(6), Budget(macs=0.6), config=CompressConfig(images=96, latency_seconds=0.01))
    assert result.plan.replaced
    x = batches()[0].args[0]
    assert result.model(x).shape == (16, 3)


def test_attributes_and_form_go_over_once_and_again() -> None:
    net = TupleNet()
    first, second = nn.Identity(), nn.Identity()
    install_(net, "blocks.1", first, OutputFormat((None, (None, None)), (1, 0)))
    assert net.blocks[1] is first
    x = torch.ones(1, 2, 6)
    assert first(x) == (None, (x, None))
    assert copy_format_(first, second)(x) == (None, (x, None))
    assert (first.kind, second.kind) == ("half", "half")


def test_an_attribute_hides_no_part_of_what_takes_the_place() -> None:
    net, module = TupleNet(), nn.Sequential()
    module.add_module("kind", nn.ReLU())
    install_(net, "blocks.0", module)
    assert isinstance(module.kind, nn.ReLU)


class NamedBlock(nn.Module):
    """Is given its stream by keyword, after something else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, scale: float, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden + scale * self.down(torch.relu(self.up(hidden * mask)))


class NamedNet(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(NamedBlock(width) for _ in range(5))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[..., :1] > -2.0).to(x.dtype)
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(mask=mask, hidden=x, scale=1.0 + number)
        return self.head(x.mean(dim=1))


@pytest.fixture
def named() -> NamedNet:
    torch.manual_seed(0)
    return NamedNet().eval()


def test_a_stream_by_keyword_is_the_stream(named: NamedNet) -> None:
    line = build_segments(analyze(named, batches()[0].take(2)))
    assert line.paths == tuple(f"blocks.{number}" for number in range(5))
    assert line.is_contiguous == (False, True, True, True, True)
    assert {step.output_format for step in line.segments} == {OutputFormat(stream_name="hidden")}


def test_a_span_with_its_stream_by_keyword_is_fitted_on_what_enters_it(named: NamedNet) -> None:
    data = batches()
    graph = analyze(named, data[0].take(2))
    spans = {(span.start, span.stop): span for span in find_spans(graph, build_segments(graph), 2)}
    [fitted] = fit_all(graph, data, [ReplacementSpec(spans[1, 3], "linear")])
    with torch.no_grad():
        x = data[0].args[0]
        mask = (x[..., :1] > -2.0).to(x.dtype)
        entering = named.blocks[0](1.0, named.stem(x), mask)
        leaving = named.blocks[2](3.0, named.blocks[1](2.0, entering, mask), mask)
        error = (fitted.module(entering) - leaving).square().mean() / leaving.var()
        assert error < 0.2
        student = analyze(copy.deepcopy(named), data[0].take(2))
        action = Replace(paths=list(fitted.span.paths), stand_in=fitted.stand_in)
        cut = replace_spans_(student, [action], {fitted.span.paths[0]: copy.deepcopy(fitted.module)})
        expected = fitted.module(entering)
        for number in (3, 4):
            expected = named.blocks[number](number + 1.0, expected, mask)
        torch.testing.assert_close(cut(x), cut.head(expected.mean(dim=1)))
        before = (cut(x) - named(x)).square().mean()
        refit_(graph, cut, [fitted], data)
        assert (cut(x) - named(x)).square().mean() < before
        assert torch.equal(copy.deepcopy(cut)(x), cut(x))


@pytest.mark.slow
def test_compress_by_macs_with_the_stream_by_keyword(named: NamedNet, tmp_path: Path) -> None:
    result = compress(
        named,
        batches(6),
        Budget(macs=0.5),
        config=CompressConfig(images=96, latency_seconds=0.01, stand_ins=("scale", "linear", "narrow", "folded")),
    )
    assert result.plan.replaced
    x = batches()[0].args[0]
    result.save(tmp_path / "out")
    loaded = load(tmp_path / "out", model=NamedNet()).eval()
    assert torch.equal(loaded(x), result.model(x))


def test_of_two_tensors_by_keyword_the_stream_is_the_one_that_the_sum_is_made_of(named: NamedNet) -> None:
    class Masked(NamedNet):
        def forward(self, x: Tensor) -> Tensor:
            y = x = self.stem(x)
            for block in self.blocks:
                x = block(mask=x.abs(), hidden=x, scale=1.0)
                y = y + 1
            return self.head(x.mean(dim=1) * y.mean(dim=1))

    line = build_segments(analyze(Masked().eval(), batches()[0].take(2)))
    assert {step.output_format.stream_name for step in line.segments} <= {"hidden"}


def test_the_shape_of_a_block_is_that_of_its_stream_not_of_a_mask_before_it(named: NamedNet) -> None:
    chain = analyze(named, batches()[0].take(2)).chain
    assert {block.in_shape for block in chain} == {(5, 6)}
