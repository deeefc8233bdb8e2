import sys

import pytest

from shoal.errors import ModelRaisedError, SpecError
from shoal.sources.user_code import call_function, is_file_spec


@pytest.fixture(autouse=True)
def tidy():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder, text, name="net.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("a/b.py:build", True), ("b.py", True), ("C:\\b.py:build", True), ("timm:x", False), ("folder", False)],
)
def test_which_specs_are_files(spec, expected):
    assert is_file_spec(spec) is expected


def test_returns_what_the_function_returns(tmp_path):
    assert call_function(f"{write(tmp_path, 'def build(): return 7')}:build") == 7


def test_imports_from_the_same_folder(tmp_path):
    write(tmp_path, "VALUE = 5", "part_beside.py")
    file = write(tmp_path, "import part_beside\ndef build():\n    import other\n    return part_beside.VALUE + other.X")
    write(tmp_path, "X = 1", "other.py")
    assert call_function(f"{file}:build") == 6


def test_two_folders_with_files_of_the_same_names(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        write(folder, f"VALUE = {number}", "part_beside.py")
        file = write(folder, "import part_beside\ndef build(): return part_beside.VALUE")
        assert call_function(f"{file}:build") == number


def test_dataclasses_find_their_module(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass C:\n    x: int = 3\ndef build(): return C()"
    )
    assert call_function(f"{write(tmp_path, text)}:build").x == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_module_at_all",
            r"importing 'net\.py' raised ModuleNotFoundError: .* \(net\.py, line 1\)",
        ),
        ("x = 1\ndef build(:", r"SyntaxError: .* \(net\.py, line 2\)"),
        (
            "def build():\n    pass\n    return 1 / 0",
            r"calling build\(\) of 'net\.py' raised ZeroDivisionError.*line 3",
        ),
        ("def build(size): return 1", r"raised TypeError: build\(\) missing 1 required"),
        ("raise SystemExit(3)", r"raised SystemExit: 3 \(net\.py, line 1\)"),
    ],
)
def test_errors_in_the_file(tmp_path, text, message):
    with pytest.raises(ModelRaisedError, match=message) as caught:
        call_function(f"{write(tmp_path, text)}:build")
    assert caught.value.__cause__ is not None


def test_a_file_that_failed_can_be_mended(tmp_path):
    with pytest.raises(ModelRaisedError):
        call_function(f"{write(tmp_path, 'oops')}:build")
    assert call_function(f"{write(tmp_path, 'def build(): return 12345')}:build") == 12345


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:biuld", r"'net\.py' defines no 'biuld'\n.*Did you mean 'build'"),
        ("{}:SIZE", r"'SIZE' in .* is not a function"),
        ("{}", r"does not name a function\n.*defines: build"),
        ("{}x.py:build", r"there is no file"),
        ("plain", r"not of the form FILE\.py:FUNCTION"),
    ],
)
def test_wrong_specs(tmp_path, spec, message):
    file = write(tmp_path, "SIZE = 3\ndef build(): return SIZE")
    with pytest.raises(SpecError, match=message):
        call_function(spec.format(file))
