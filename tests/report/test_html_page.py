import pytest
from scanned import evil_scan

from shoal.report.html import breakable, code, embed, nowrap


def test_embedded_json_cannot_end_its_element() -> None:
    assert not set("<>&") & set(embed(evil_scan()))


def test_a_number_stays_with_its_per_cent_sign() -> None:
    assert nowrap("95 % of 3") == "95\u00a0% of 3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`a.b` and `c`", "<code>a.b</code> and <code>c</code>"),
        ("`<i>` & <b>", "<code>&lt;i&gt;</code> &amp; &lt;b&gt;"),
        ("an odd ` <b>", "an odd ` &lt;b&gt;"),
    ],
)
def test_names_in_backticks_are_code_and_all_is_escaped(text: str, expected: str) -> None:
    assert code(text) == expected


def test_long_names_may_be_broken_where_their_words_end() -> None:
    assert breakable("stages.0.1") == "stages.0.1"
    assert breakable("model.layers.11.self_attn") == "model.<wbr/>layers.<wbr/>11.<wbr/>self_<wbr/>attn"
    assert breakable("HubertEncoderLayer") == "Hubert<wbr/>Encoder<wbr/>Layer"
    assert breakable("<b>a name.of markup") == "&lt;b&gt;a name.<wbr/>of markup"
