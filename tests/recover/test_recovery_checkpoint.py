import pytest

from shoal.batches import Batch
from shoal.errors import FolderError, UsageError, WeightsError
from shoal.recover.checkpoint import check_fingerprint, ensure_dir, fingerprint
from teaching import images, student, teacher


def given(**more):
    parts = {"student": student(), "teacher": teacher(), "validation": [Batch((images(4),))], **more}
    return {"settings": {"seed": 0}, "budget": "4 steps", "given": fingerprint(**parts)}


def test_the_same_is_let_through(tmp_path):
    check_fingerprint(tmp_path, given(), given())


def test_what_is_another_is_named(tmp_path):
    other = teacher()
    other.head.bias.data += 1
    for more, said in (
        ({"student": other}, "another student"),
        ({"teacher": other}, "another teacher"),
        ({"validation": [Batch((images(4, 1),))]}, "other validation samples"),
        ({"student": other, "teacher": other}, "another student and another teacher"),
    ):
        with pytest.raises(WeightsError, match=f"began with {said}\n.*choose a new folder"):
            check_fingerprint(tmp_path, given(**more), given())
    with pytest.raises(UsageError, match="other settings: seed was 0, budget was '4 steps'"):
        check_fingerprint(tmp_path, given(), {**given(), "budget": "5 steps", "settings": {"seed": 1}})


def test_a_checkpoint_that_does_not_say_is_of_another_run(tmp_path):
    said = given()
    del said["given"]
    with pytest.raises(WeightsError, match="another student and another teacher and other validation samples"):
        check_fingerprint(tmp_path, said, given())


def test_a_folder_is_made(tmp_path):
    assert ensure_dir(str(tmp_path / "a" / "b")).is_dir()
    assert ensure_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot use '.*file/c' for checkpoints"):
        ensure_dir(tmp_path / "file" / "c")
