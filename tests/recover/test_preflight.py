import pytest
import torch
from torch import nn

from shoal.batches import Batch, as_batch
from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.recover.preflight import (
    check_disjoint,
    check_in_memory,
    check_labelled,
    check_same_outputs,
    check_unlabelled,
)
from teaching import TokenNet, images, student, teacher, tokens


def test_a_teacher_with_other_outputs_is_refused_by_number():
    other = student()
    other.head = nn.Linear(4, 7)
    with pytest.raises(DataError, match="the teacher has 10 outputs, the student 7"):
        check_same_outputs(teacher(), other, Batch((images(2),)))
    check_same_outputs(teacher(), student(), Batch((images(2),)))


def test_answers_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r"the teacher answers in shape \(12, 7, 6\), the student in \(12, 7, 4\)"):
        check_same_outputs(TokenNet().eval(), TokenNet(classes=4).eval(), as_batch(tokens()))


def test_a_teacher_at_fault_is_named():
    model = teacher()
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(NonFiniteError, match="the teacher's output holds NaN"):
        check_same_outputs(model, student(), Batch((images(2),)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Batch((torch.zeros(2, 3, 8, 8),)), r"samples of shape \(3, 8, 8\) torch.float32, expected \(1, 8, 8\)"),
        (Batch((torch.zeros(2, 1, 8, 8, dtype=torch.uint8),)), "torch.uint8"),
        (as_batch(tokens()), "the inputs attention_mask, input_ids|input_ids, attention_mask"),
    ],
)
def test_unlabelled_data_of_another_form_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        check_unlabelled(wrong, Batch((images(2),)))


def test_sequences_may_be_of_another_length():
    longer = {key: torch.cat([value, value], dim=1) for key, value in tokens().items()}
    check_unlabelled(as_batch(longer), as_batch(tokens()))


def test_what_is_learned_from_is_not_what_is_chosen_on():
    one, other = [images(2)], [images(2)]
    with pytest.raises(UsageError, match="the validation data is the very training data"):
        check_disjoint(one, training=one, unlabelled=None)
    check_disjoint(one, training=other, unlabelled=None)
    check_disjoint(None, training=None)


def test_a_network_on_a_disk_is_refused():
    with torch.device("meta"):
        gone = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"some of them are on a disk\n.*--recover none"):
        check_in_memory(gone)
    check_in_memory(teacher())


def test_labels_are_asked_for_where_they_are_used():
    with pytest.raises(DataError, match=r"the training data has no labels.*\(labels=0.5\)"):
        check_labelled(Batch((images(2),)), 0.5)
    check_labelled(Batch((images(2),)), 0.0)
    check_labelled(Batch((images(2),), {}, torch.zeros(2)), 0.5)
