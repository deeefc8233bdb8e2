"""Altered and hostile files: each reader refuses them with an error of Shoal, or reads them."""

import pytest
import readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.errors import FolderError, ShoalError

FEW = settings(
    max_examples=12, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
NASTY = [
    b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b"0", b'"a"', b"1e999", b"NaN", b"-Infinity", b"1" * 5000,
    b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b'"\\ud800"', b"\x93NUMPY",
    b"\xef\xbb\xbf{}", b"PK\x03\x04",
    b"\x80\x02}q\x00.", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"a" * 70_000,
]  # fmt: skip


@st.composite
def altered(draw, sound):
    """The bytes of a sound file, with some of them changed, left out, repeated, or put in from elsewhere."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert"]))
        if how == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[place:]
        elif how == "drop":
            del content[place : place + draw(st.integers(1, 16))]
        elif how == "repeat":
            content[place:place] = content[max(0, place - 32) : place]
        else:
            content[place:place] = draw(st.sampled_from(NASTY))[:1000] or draw(st.binary(max_size=8))
    return bytes(content)


@pytest.mark.parametrize("kind", readers.SOUND)
def test_a_sound_file_is_read(kind):
    assert readers.feed(kind, readers.SOUND[kind]) is None


@pytest.mark.parametrize("kind", readers.SOUND)
def test_nothing_but_an_error_of_shoal_leaves_a_reader(kind):
    for content in NASTY:
        readers.feed(kind, content)

    @FEW
    @given(altered(readers.SOUND[kind]))
    def feed(content):
        error = readers.feed(kind, content)
        assert error is None or len(str(error)) < 6000

    feed()


@pytest.mark.parametrize("content", [one for one in NASTY if one not in (b"null", b"[]", b"{}", b"0", b'"a"')])
def test_what_is_no_plain_json(content):
    if content != b"\xef\xbb\xbf{}":
        with pytest.raises(ShoalError, match="no document"):
            readers.anything_read_as_json(content)


@FEW
@given(st.binary(max_size=64))
def test_any_bytes_as_json(content):
    try:
        readers.anything_read_as_json(content)
    except FolderError as refusal:
        text = str(refusal)
    else:
        text = ""
    assert text == "" or text.isprintable()
