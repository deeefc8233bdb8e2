import gc
import os
import subprocess
import sys

import pytest

from shoal.errors import FolderError
from shoal.files.locking import LOCK, OWNER, holding, lock_folder


def test_one_at_a_time_by_name(tmp_path):
    lock = lock_folder(tmp_path)
    with pytest.raises(FolderError, match=f"in use by process {os.getpid()} on"):
        lock_folder(tmp_path)
    assert lock_folder(tmp_path, shared=True) is lock
    with holding(tmp_path):
        pass
    with pytest.raises(FolderError, match="in use"):  # what was shared is not let go
        lock_folder(tmp_path)
    lock.release()
    assert not (tmp_path / OWNER).exists()
    with holding(tmp_path), pytest.raises(FolderError, match="in use"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).release()
    with holding(None):
        pass


@pytest.mark.parametrize("owner", ["", "{", "[]", '{"pid": 1}', "[" * 100_000])
def test_an_owner_that_cannot_be_read_is_another_command(tmp_path, owner):
    lock = lock_folder(tmp_path)
    (tmp_path / OWNER).write_text(owner)
    with pytest.raises(FolderError, match="in use by another command"):
        lock_folder(tmp_path)
    lock.release()


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(FolderError, match="cannot lock the folder"):
        lock_folder(tmp_path)


def test_a_lock_that_nobody_holds_any_more_is_released(tmp_path):
    """As that of tables, which end with the last who reads them."""
    lock = lock_folder(tmp_path)
    assert (tmp_path / OWNER).exists()
    del lock
    gc.collect()
    assert not (tmp_path / OWNER).exists()
    lock_folder(tmp_path).release()


def test_a_process_that_ends_leaves_no_owner(tmp_path):
    imports = "from pathlib import Path; from shoal.files.locking import lock_folder; "
    code = f"{imports}lock = lock_folder(Path({str(tmp_path)!r})); lock.me = lock"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [file.name for file in tmp_path.iterdir() if file.name != LOCK] == []


def test_a_fork_that_ends_lets_nothing_go(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from shoal.files.locking import lock_folder\n"
        f"path = Path({str(tmp_path)!r}); lock = lock_folder(path)\n"
        "if not os.fork(): sys.exit()\n"
        "os.wait(); sys.exit(0 if (path / '.shoal.owner.json').exists() else 3)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
