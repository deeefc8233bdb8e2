import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shoal.batches import (
    Batch,
    Repeatable,
    as_batch,
    batches,
    call,
    call_in_parts,
    check_logits,
    device_of,
    like_of,
    logits_of,
)
from shoal.errors import DataError, ModelRaisedError, NonFiniteError, OutOfMemoryError, ShoalError, UsageError
from shoal.measure import paired_predictions

X, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("item", "args", "keywords", "has_target"),
    [
        (X, 1, [], False),
        ((X,), 1, [], False),
        ((X, Y), 1, [], True),
        ([X, Y], 1, [], True),
        ((X, [0, 1, 2]), 1, [], True),
        ({"input_ids": Y, "attention_mask": Y}, 0, ["input_ids", "attention_mask"], False),
        ({"input_ids": Y, "labels": Y}, 0, ["input_ids"], True),
        ({"x": X, "y": Y}, 0, ["x"], True),
        (({"input_ids": Y}, Y), 0, ["input_ids"], True),
        (({"input_ids": Y, "label": Y},), 0, ["input_ids"], True),
    ],
)
def test_every_usual_item_of_a_loader_is_read(item, args, keywords, has_target):
    batch = as_batch(item)
    assert (len(batch.args), list(batch.kwargs)) == (args, keywords)
    assert (batch.target is not None) == has_target
    if has_target:
        assert torch.equal(batch.target, Y)
    assert batch.size == 3
    assert as_batch(batch) is batch


def test_reading_a_dict_leaves_the_dict_alone():
    item = {"input_ids": Y, "labels": Y}
    as_batch(item)
    assert list(item) == ["input_ids", "labels"]


@pytest.mark.parametrize("item", [3, "x", None, (), (X, Y, Y), {"labels": Y}, {"name": "x"}, ("a", Y)])
def test_other_items_are_refused_with_what_was_expected(item):
    with pytest.raises(DataError, match=r"expected \(inputs, target\), inputs, or a dict of tensors"):
        as_batch(item)


@pytest.mark.parametrize("target", [{"boxes": Y}, ["a", "b", "c"], [[1], [1, 2], [3]], object()])
def test_targets_that_make_no_tensor_are_refused(target):
    with pytest.raises(DataError, match=f"a {type(target).__name__} that makes no tensor"):
        as_batch((X, target))


@pytest.mark.parametrize("target", [torch.tensor(1), 1, 0.5])
def test_a_sample_in_the_place_of_a_mini_batch_is_refused(target):
    with pytest.raises(DataError, match="is a single number"):
        as_batch((X[0], target))


def fails_midway():
    yield X
    raise KeyError("no such file")


@pytest.mark.parametrize("read", [lambda loader: list(batches(loader)), lambda loader: list(Repeatable(loader))])
def test_what_a_loader_raises_comes_back_as_a_fault_of_the_data(read):
    with pytest.raises(DataError, match="raised KeyError: 'no such file'") as caught:
        read(fails_midway())
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DataError, match="the data is an int, expected a loader"):
        list(batches(3))


def test_our_own_errors_and_interrupts_pass_through_a_loader():
    for error in (NonFiniteError("bad", "mend it"), KeyboardInterrupt()):

        def loader(error=error):
            yield X
            raise error

        with pytest.raises(type(error)):
            list(batches(loader()))


def test_the_first_samples_are_taken_from_everything_that_has_samples():
    batch = Batch((X, 7), {"mask": Y, "scale": torch.tensor(2.0)}, Y).take(2)
    assert batch.size == 2
    assert batch.args[1] == 7
    assert batch.kwargs["mask"].tolist() == [0, 1]
    assert batch.kwargs["scale"] == 2.0
    assert batch.target.tolist() == [0, 1]


def test_moving_changes_the_layout_of_images_only():
    batch = Batch((torch.randn(2, 3, 4, 4), X, "text"), {}, Y).to("cpu", torch.channels_last)
    assert batch.args[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.args[1], X)
    assert batch.args[2] == "text"
    assert Batch((X,)).to("cpu").target is None


@pytest.mark.parametrize("item", [torch.empty(0, 3), (torch.empty(0, 3), torch.empty(0))])
def test_a_mini_batch_without_samples_is_refused(item):
    with pytest.raises(DataError, match="without samples"):
        list(batches([item]))


def test_a_loader_is_read_lazily_and_to_its_end():
    seen = []

    def loader():
        for number in range(3):
            seen.append(number)
            yield X

    stream = batches(loader(), "cpu")
    next(stream)
    assert seen == [0]
    assert len(list(stream)) == 2


def test_the_device_is_that_of_the_first_tensor():
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("first", nn.Parameter(torch.empty(1, device="meta")))

    assert device_of(nn.Linear(1, 1)).type == "cpu"
    assert device_of(nn.BatchNorm1d(2, affine=False)).type == "cpu"
    assert device_of(nn.ReLU()).type == "cpu"
    # What stands on meta is somewhere else: the next tensor says where; a network that is all there has no other.
    assert device_of(nn.Sequential(Elsewhere(), nn.Linear(1, 1))).type == "cpu"
    assert device_of(Elsewhere()).type == "meta"


def test_what_is_to_join_a_network_is_like_its_weights():
    model = nn.Sequential(nn.Embedding(3, 4, dtype=torch.bfloat16), nn.Linear(4, 1))
    assert like_of(model).dtype == torch.bfloat16
    assert like_of(nn.ReLU()).dtype == torch.float32


def test_an_exception_of_the_model_comes_back_with_the_shape_and_its_cause():
    with pytest.raises(ModelRaisedError, match=r"raised RuntimeError on .* shape \(3, 4\) torch.float32") as caught:
        call(nn.Linear(5, 2), as_batch(X))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_our_own_errors_and_interrupts_pass_through_a_model():
    class Raising(nn.Module):
        def forward(self, error):
            raise error

    for error in (UsageError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            call(Raising(), Batch((error,)))
        assert caught.value is error
    assert issubclass(UsageError, ShoalError)


class WithLogits(dict):
    logits = X


@pytest.mark.parametrize(
    "output",
    [
        X,
        (X, Y),
        (Y, X),
        {"logits": X, "aux": X + 1},
        {"loss": Y, "out": X},
        [(X,), X + 1],
        SimpleNamespace(logits=X, loss=X + 1),
        WithLogits(loss=X + 1),
    ],
)
def test_the_main_output_is_found(output):
    assert torch.equal(logits_of(output), X)


@pytest.mark.parametrize("output", [Y, (Y,), {}, None, "text", {"logits": Y}])
def test_an_output_without_numbers_is_refused(output):
    with pytest.raises(DataError, match="without a floating-point tensor"):
        logits_of(output)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_counted(bad):
    logits = X.clone()
    logits[0, :2] = bad
    with pytest.raises(NonFiniteError, match="2 of 12 values"):
        check_logits(logits)
    check_logits(X)
    check_logits(X.masked_fill(X > 0, -torch.inf))  # masked scores


IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_labels_that_are_the_tokens_move_to_where_they_are_answered():
    found = as_batch({"input_ids": IDS, "labels": IDS.clone()})
    assert found.target.tolist() == [[6, 7, 8, -100], [6, 0, 0, -100]]
    padded = as_batch({"input_ids": IDS, "attention_mask": MASK, "labels": IDS})
    assert padded.target.tolist() == [[6, 7, 8, -100], [6, -100, -100, -100]]
    skipped = as_batch({"input_ids": IDS, "labels": torch.where(MASK == 1, IDS, -100)})
    assert skipped.target.tolist() == [[6, 7, 8, -100], [6, -100, -100, -100]]


@pytest.mark.parametrize(
    "item",
    [
        {"input_ids": IDS, "labels": torch.tensor([[-100, 9, -100, -100], [-100] * 4])},  # a masked language model
        {"input_ids": IDS, "labels": IDS.roll(-1, 1)},
        {"input_ids": IDS, "labels": torch.tensor([0, 1])},
        {"input_ids": IDS, "target": IDS},
        {"input_ids": IDS, "decoder_input_ids": IDS, "labels": IDS},
        {"input_ids": IDS, "labels": torch.full_like(IDS, -100)},
    ],
)
def test_other_labels_stay_where_they_are(item):
    given = item.get("labels", item.get("target"))
    assert torch.equal(as_batch(item).target, given)


def test_which_answers_count():
    batch = Batch(kwargs={"input_ids": IDS, "attention_mask": MASK})
    assert torch.equal(batch.counted((2, 4)), MASK == 1)
    assert batch.counted((2, 5)) is None
    assert batch.counted((2,)) is None
    assert Batch(kwargs={"input_ids": IDS, "attention_mask": torch.ones_like(MASK)}).counted((2, 4)) is None
    assert Batch(kwargs={"input_ids": IDS}).counted((2, 4)) is None
    # The mask of an encoder says nothing about the answers of a decoder.
    both = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS}
    assert Batch(kwargs=both).counted((2, 4)) is None
    assert torch.equal(Batch(kwargs={**both, "decoder_attention_mask": MASK}).counted((2, 4)), MASK == 1)


class Small(nn.Module):
    """Takes so many samples at once, and no more; raises as torch does it."""

    def __init__(self, limit, error=torch.OutOfMemoryError):
        super().__init__()
        self.limit, self.error, self.sizes = limit, error, []
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale=None):
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.linear(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize(("limit", "sizes"), [(7, [7]), (4, [3, 4]), (3, [3, 2, 2]), (1, [1] * 7)])
def test_a_batch_is_halved_until_memory_suffices(error, limit, sizes):
    model, x = Small(limit, error).eval(), torch.randn(7, 3)
    with torch.no_grad():
        parts = list(call_in_parts(model, Batch((x,), target=torch.arange(7))))
        assert [part.size for part, _ in parts] == sizes
        assert torch.equal(torch.cat([part.target for part, _ in parts]), torch.arange(7))
        torch.testing.assert_close(torch.cat([output for _, output in parts]), model.linear(x))


def test_what_cannot_be_halved_is_out_of_memory():
    with pytest.raises(OutOfMemoryError, match="out of memory in the model on an input of shape"):
        list(call_in_parts(Small(0), Batch((torch.randn(2, 3),))))
    with pytest.raises(OutOfMemoryError):
        list(call_in_parts(Small(1), Batch((torch.randn(2, 3),), {"scale": torch.randn(5)})))


def test_predictions_are_those_of_a_machine_with_more_memory():
    torch.manual_seed(0)
    small, loader = Small(3), [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(2)]
    large = copy.deepcopy(small)
    large.limit = 100
    one, other = paired_predictions([small, large], loader)
    assert small.sizes == [8, 4, 2, 2, 4, 2, 2] * 2
    torch.testing.assert_close(one.log_probs, other.log_probs)
    assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "item",
    [
        lambda target: (X, target),
        lambda target: (X, target.numpy()),
        lambda target: (X, target.tolist()),
        lambda target: ({"x": X}, target),
        lambda target: {"x": X, "labels": target},
        lambda target: {"x": X, "y": target.half()},
    ],
)
def test_targets_that_are_no_numbers_are_refused_with_their_count(item, bad):
    target = torch.zeros(3, 2)
    target[1] = bad
    with pytest.raises(NonFiniteError, match="targets of a mini-batch hold NaN or Inf: 2 of 6 values"):
        as_batch(item(target))


@pytest.mark.parametrize(("count", "expected"), [(2, [0, 1]), (3, [0, 1, 2]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_a_mini_batch_of_another_size_repeats_its_samples(count, expected):
    batch = Batch((torch.arange(3),), {"mask": torch.arange(3), "scale": torch.tensor(2.0)}, torch.arange(3))
    resized = batch.resized(count)
    assert resized.args[0].tolist() == resized.kwargs["mask"].tolist() == resized.target.tolist() == expected
    assert resized.kwargs["scale"] == 2


@dataclass
class Row:
    image: object
    target: object = None
    note: object = None


@pytest.mark.parametrize(
    ("item", "args", "keywords", "has_target"),
    [
        (X.numpy(), 1, [], False),
        ((X.numpy(), Y.numpy()), 1, [], True),
        ({"image": X.numpy(), "labels": Y.numpy()}, 0, ["image"], True),
        (({"image": X.numpy()}, Y.numpy()), 0, ["image"], True),
        (Row(X, Y), 0, ["image"], True),
        (Row(X.numpy(), Y.numpy(), "a note"), 0, ["image", "note"], True),
        (Row(X), 0, ["image"], False),
        (((X, torch.zeros(3, 2)), Y), 2, [], True),
        ([[X, X], Y], 2, [], True),
        (((X, X.numpy(), X, X), Y), 4, [], True),
    ],
)
def test_arrays_dataclasses_and_several_inputs_are_read(item, args, keywords, has_target):
    test_every_usual_item_of_a_loader_is_read(item, args, keywords, has_target)
    batch = as_batch(item)
    values = [*batch.args, *(batch.kwargs[name] for name in keywords if name != "note")]
    assert all(isinstance(value, torch.Tensor) for value in values)
    assert torch.equal(values[0], X)


def test_an_array_that_cannot_be_written_to_is_copied():
    array = X.numpy().copy()
    array.flags.writeable = False
    batch = as_batch(array)
    batch.args[0][0] = 7.0
    assert array[0, 0] != 7.0


def test_samples_in_a_row_are_one_input():
    images = [torch.randn(3, 5, 5) for _ in range(4)]
    assert as_batch((images, torch.arange(4))).args[0].shape == (4, 3, 5, 5)
    assert as_batch((tuple(images), [{"boxes": Y}] * 4)).args[0].shape == (4, 3, 5, 5)


def test_three_tensors_are_refused_with_what_to_yield():
    with pytest.raises(DataError, match=r"3 tensors, expected(.|\n)*\(\(first, second\), target\)"):
        as_batch((X, X, Y))


@pytest.mark.parametrize("extra", [["a", "b", "c"], torch.zeros(3), 5])
def test_an_entry_that_the_network_does_not_take_is_named(extra):
    class Takes(nn.Module):
        def forward(self, image, scale=1.0):
            return image * scale

    with pytest.raises(
        ModelRaisedError, match=r"Takes takes image, scale: leave 'path' out(.|\n)*labels, label"
    ) as caught:
        call(Takes(), as_batch({"image": X, "path": extra, "labels": Y}))
    assert "--size" not in str(caught.value)
    with pytest.raises(ModelRaisedError, match="--size"):
        call(nn.Linear(5, 2), as_batch({"input": X}))


def test_conditions_in_a_dict_of_their_own_stay_with_their_samples():
    """As `added_cond_kwargs` of diffusers."""
    rows = torch.arange(6.0)[:, None]
    batch = as_batch({"sample": rows, "added_cond_kwargs": {"text_embeds": 10 * rows, "scale": 2.0}})
    for part in (batch.take(2), batch.rest(4), batch.resized(9), batch.divided(3)[1].to("cpu").cloned()):
        condition = part.kwargs["added_cond_kwargs"]
        assert torch.equal(condition["text_embeds"], 10 * part.kwargs["sample"])
        assert condition["scale"] == 2.0
    copied = batch.cloned()
    copied.kwargs["added_cond_kwargs"]["text_embeds"].zero_()
    assert torch.equal(batch.kwargs["added_cond_kwargs"]["text_embeds"], 10 * rows)


class Writer(nn.Module):
    """An encoder with a decoder, which reads what the encoder reads where it is given nothing, as BART does."""

    def prepare_decoder_input_ids_from_labels(self, labels):
        return labels.roll(1, dims=1)

    def forward(self, input_ids, decoder_input_ids=None):
        read = input_ids if decoder_input_ids is None else decoder_input_ids
        return nn.functional.one_hot(read, 9).float()


def test_labels_of_a_text_need_what_the_decoder_reads():
    tokens = torch.arange(8).reshape(2, 4)
    labels = tokens.flip(1)[:, :3]
    with pytest.raises(DataError, match=r"nothing for the decoder of Writer to read\n.*decoder_input_ids"):
        call(Writer(), as_batch({"input_ids": tokens, "labels": labels}))
    shifted = Writer().prepare_decoder_input_ids_from_labels(labels)
    answer = call(Writer(), as_batch({"input_ids": tokens, "decoder_input_ids": shifted, "labels": labels}))
    assert torch.equal(answer.argmax(-1), shifted)
    assert call(Writer(), as_batch({"input_ids": tokens})).shape == (2, 4, 9)
    assert call(Writer(), as_batch({"input_ids": tokens, "labels": torch.zeros(2, dtype=torch.int64)})).shape[0] == 2
