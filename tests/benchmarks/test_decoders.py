"""What the benchmark of language models shares between its methods."""

import json
import sys
from pathlib import Path

import pytest
import torch

import language

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from decoders import judge, texts
from decoders.ground import cut_as_noted, rows_of, units_left, without_layers, without_units


def test_a_mixture_holds_every_kind_by_turns_and_is_made_once(tmp_path):
    prose = [f"prose {index} " * 200 for index in range(40)]
    (tmp_path / "calib.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["short", *prose]))
    file = texts.calibration_file(tmp_path, tmp_path, "mixed")
    documents = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    kinds = [text.startswith("prose") for text in documents]
    assert kinds[:8] == [True, False] * 4
    assert [text for text in documents if text.startswith("prose")] == prose
    assert min(map(len, documents)) >= 1000
    file.write_text("as it was")
    assert texts.calibration_file(tmp_path, tmp_path, "mixed").read_text() == "as it was"
    assert texts.calibration_file(tmp_path, tmp_path, "prose") == tmp_path / "calib.jsonl"


def test_rows_are_the_beginnings_of_documents_or_pieces_of_each(tmp_path):
    def characters(text):
        return type("Encoded", (), {"input_ids": [ord(letter) for letter in text]})

    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["abcdefg", "h", "ijkl"]))
    said = ["".join(map(chr, row)) for row in rows_of(characters, file, 3, 3, pieces=9).tolist()]
    assert said == ["abc", "def", "ijk"]
    assert rows_of(characters, file, 2, 3).tolist() == [[97, 98, 99], [105, 106, 107]]
    with pytest.raises(SystemExit, match="has 2 pieces of 3 tokens, expected 3"):
        rows_of(characters, file, 3, 3)


def test_shares_of_latency_are_of_prefill_and_of_a_token(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(judge.time, "perf_counter", lambda: next(clock))
    model = language.llama(4)
    shares = judge.latency_shares(without_layers(model, [1, 2]), model, language.tokens(3), pairs=2, tokens=2)
    assert shares == pytest.approx({"prefill": 1.0, "token": 1.0})


def test_a_note_says_what_a_network_has_lost():
    model = language.llama(6)
    for note, layers, units in [
        ({"removed": [1, 2]}, [1, 2], []),
        ({"removed": ["model.layers.1", "model.layers.3#0"]}, [1], [(3, "self_attn")]),
        ({"removed": ["1.mlp", "1.self_attn", "4.mlp"]}, [1], [(4, "mlp")]),
        ({"removed": [], "replaced": ["model.layers.1 + model.layers.2 + model.layers.3"]}, [2, 3], []),
    ]:
        expected = without_layers(without_units(model, units), layers)
        lost = [len(layers) + sum(name == kind for _, name in units) for kind in ("self_attn", "mlp")]
        assert units_left(cut_as_noted(model, note)) == (6 - lost[0], 0, 6 - lost[1])
        ids = language.tokens(2)
        with torch.no_grad():
            torch.testing.assert_close(cut_as_noted(model, note)(ids).logits, expected(ids).logits, rtol=0, atol=0)


def test_a_note_says_which_attentions_are_linear_maps():
    note = {"removed": ["model.layers.1"], "linear": ["model.layers.2.self_attn", "model.layers.4.self_attn"]}
    cut = cut_as_noted(language.llama(6), note)
    assert units_left(cut) == (3, 2, 5)
    whole = cut(language.tokens(1), use_cache=False).logits
    first = cut(language.tokens(1)[:, :5], use_cache=True)
    rest = cut(language.tokens(1)[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=1e-4, atol=1e-5)


def test_decoding_from_the_cache_says_what_a_whole_forward_says():
    """Otherwise the time of a token would be that of something else."""
    model = without_layers(language.llama(4), [1])
    ids = language.tokens(1)
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
        following = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=following, past_key_values=output.past_key_values, use_cache=True).logits
        whole = model(input_ids=torch.cat([ids, following], 1), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(step, whole, rtol=1e-4, atol=1e-5)
