import pytest

from shoal.batches import Batch
from shoal.errors import FolderError, UsageError, WeightsError
from shoal.recover.checkpoint import check_fingerprint, ensure_dir, fingerprint
from teaching import images, student, teacher

RUN = {"settings": {"seed": 0}, "budget": "4 steps"}


def inputs(**changes):
    return fingerprint(**{"student": student(), "teacher": teacher(), "validation": [Batch((images(4),))], **changes})


def recorded(index=0, **changes):
    """What a checkpoint says about its run, by today's digests or by older ones."""
    return {
        **RUN,
        "given": {name: digests[min(index, len(digests) - 1)] for name, digests in inputs(**changes).items()},
    }


@pytest.mark.parametrize("index", [0, 1])
def test_the_same_run_is_accepted_also_by_the_digests_of_older_versions(tmp_path, index):
    check_fingerprint(tmp_path, recorded(index), RUN, inputs())


def test_what_differs_is_named(tmp_path):
    changed = teacher()
    changed.head.bias.data += 1
    for changes, text in (
        ({"student": changed}, "another student"),
        ({"teacher": changed}, "another teacher"),
        ({"validation": [Batch((images(4, 1),))]}, "other validation samples"),
        ({"student": changed, "teacher": changed}, "another student and another teacher"),
    ):
        with pytest.raises(WeightsError, match=f"began with {text}\n.*choose a new folder"):
            check_fingerprint(tmp_path, recorded(**changes), RUN, inputs())
    with pytest.raises(UsageError, match="other settings: budget was '4 steps', now '5 steps', seed was 0, now 1"):
        check_fingerprint(tmp_path, recorded(), {"budget": "5 steps", "settings": {"seed": 1}}, inputs())


def test_a_checkpoint_that_names_no_inputs_is_of_another_run(tmp_path):
    with pytest.raises(WeightsError, match="another student and another teacher and other validation samples"):
        check_fingerprint(tmp_path, RUN, RUN, inputs())


def test_a_folder_is_made(tmp_path):
    assert ensure_dir(str(tmp_path / "a" / "b")).is_dir()
    assert ensure_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"cannot use '.*file/c' for checkpoints"):
        ensure_dir(tmp_path / "file" / "c")
    with pytest.raises(FolderError, match=r"cannot use .a.*b. for checkpoints: .*embedded null"):
        ensure_dir("a\0b")
