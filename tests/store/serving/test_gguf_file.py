import importlib.util

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import language
from serving_cases import SIZES, UNITS, cut, logits
from shoal.errors import ExportError, UsageError
from shoal.store.serving.decoder import build, read_decoder
from shoal.store.serving.gguf_file import (
    DTYPES,
    GgufContent,
    check_gguf,
    decoder_for_gguf,
    number_type,
    read_gguf,
    read_number_type,
    write_gguf,
)
from shoal.store.serving.gguf_vocabulary import CONTROL, NORMAL, UNUSED, read_vocabulary

gguf = pytest.importorskip("gguf", reason="shoal[gguf] is not installed")
TEXTS = [
    "the blue fish swims in deep water",
    "  Two  spaces, tabs\tand\n\nlines; 12345 digits, don't you'll",
    "Ünïcode — naïve 漢字 🐟 fish",
    "<s>special</s> inside",
]


def randomised(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model.eval()


def llama3_positions():
    rope = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters={**rope, "original_max_position_embeddings": 32}))


FAMILIES = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama3 positions": llama3_positions,
    "wide heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16)),
}


def written(path, made, dtype=torch.float32, vocabulary=None):
    content = GgufContent(decoder_for_gguf(made), dtype, "tiny", vocabulary)
    write_gguf(path, content)
    return content


def fields(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("name", UNITS)
def test_the_file_computes_the_same_when_it_is_read_again(tmp_path, name):
    made, _ = cut(UNITS[name])
    written(tmp_path / "m.gguf", made)
    assert check_gguf(tmp_path / "m.gguf", made, torch.float32).max_abs_diff == 0
    ids = language.tokens(seed=3)
    assert torch.equal(logits(build(read_gguf(tmp_path / "m.gguf")), ids), logits(made, ids))


def test_arrays_by_layer_are_as_long_as_the_network_and_an_attention_alone_keeps_a_narrow_mlp(tmp_path):
    made, _ = cut(UNITS["all kinds"])
    written(tmp_path / "m.gguf", made)
    seen = fields(tmp_path / "m.gguf")
    assert seen["general.architecture"] == "deci"
    assert seen["deci.block_count"] == 4
    assert seen["deci.attention.head_count"] == [4, 0, 4, 4]
    assert seen["deci.attention.head_count_kv"] == [2, 0, 2, 2]
    assert seen["deci.feed_forward_length"] == [48, 48, 32, 48]  # llama.cpp would drop the attention of a layer without
    decoder = read_gguf(tmp_path / "m.gguf")
    assert not decoder.tensors["model.layers.2.mlp.down_proj.weight"].any()


def test_whole_layers_are_an_ordinary_llama(tmp_path):
    made, _ = cut(UNITS["halves that meet"])
    written(tmp_path / "m.gguf", made)
    seen = fields(tmp_path / "m.gguf")
    assert seen["general.architecture"] == "llama"
    assert (seen["llama.block_count"], seen["llama.attention.head_count"], seen["llama.feed_forward_length"]) == (
        4,
        4,
        48,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_relatives_of_llama_come_back(tmp_path, name):
    made, _ = cut(UNITS["all kinds"], randomised(FAMILIES[name]()))
    written(tmp_path / "m.gguf", made)
    assert check_gguf(tmp_path / "m.gguf", made, torch.float32).same_token == 1


@pytest.mark.parametrize("kind", DTYPES)
def test_types_of_numbers(tmp_path, kind):
    made, _ = cut(UNITS["no MLP"])
    written(tmp_path / "m.gguf", made, DTYPES[kind])
    agreement = check_gguf(tmp_path / "m.gguf", made, DTYPES[kind])
    assert (agreement.max_abs_diff == 0) is (kind == "f32")
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == kind
    assert kinds["blk.0.attn_norm.weight"] == "f32"


def test_the_type_of_the_network_is_kept_unless_another_is_requested():
    decoder = read_decoder(language.llama(2).to(torch.bfloat16))
    assert number_type("auto", decoder) is torch.bfloat16
    assert number_type("f16", decoder) is torch.float16
    with pytest.raises(UsageError, match="no type 'q4_0' of numbers"):
        read_number_type("q4_0")


def test_a_number_too_large_for_the_type_is_noticed(tmp_path):
    made, _ = cut(["model.layers.2"])
    made.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e6
    written(tmp_path / "m.gguf", made, torch.float16)
    with pytest.raises(ExportError, match="too large for the file's type"):
        check_gguf(tmp_path / "m.gguf", made, torch.float16)


def test_queries_and_keys_stand_as_llama_cpp_rotates_them(tmp_path):
    made, _ = cut(["model.layers.2"])
    written(tmp_path / "m.gguf", made)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    original = made.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    # of a head 8 wide, feature 1 is rotated with feature 5: they stand side by side
    assert np.array_equal(stored["blk.0.attn_q.weight"][:4], original[[0, 4, 1, 5]])
    assert np.array_equal(stored["blk.0.attn_v.weight"], made.model.layers[0].self_attn.v_proj.weight.detach().numpy())


def test_no_attention_in_front_is_refused(tmp_path):
    made, _ = cut(["model.layers.0#0"])
    with pytest.raises(ExportError, match=r"begins with 'model\.layers\.0\.mlp'.*llama\.cpp"):
        decoder_for_gguf(made)


def bytes_tokenizer(folder, pre, normalizer=None, **model):
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = ["th", "the", "in", "er"]
    vocabulary = {**alphabet, **{token: len(alphabet) + index for index, token in enumerate(merged)}}
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **model))
    inner.pre_tokenizer, inner.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def split(digits):
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    from tokenizers import Regex

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(steps)


CUTS = {
    "gpt-2": lambda folder: bytes_tokenizer(folder, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda folder: bytes_tokenizer(
        folder, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    "llama-bpe": lambda folder: bytes_tokenizer(folder, split("{1,3}"), ignore_merges=True),
    "qwen2": lambda folder: bytes_tokenizer(folder, split(""), normalizers.NFC()),
}


@pytest.mark.parametrize("name", CUTS)
def test_the_rule_that_cuts_text_is_known_by_its_parts(tmp_path, name):
    vocabulary = read_vocabulary(CUTS[name](tmp_path), 300)
    assert vocabulary.cut == name
    assert vocabulary.merges == ["t h", "th e", "i n", "e r"]
    assert vocabulary.tokens[256:260] == ["th", "the", "in", "er"]
    assert vocabulary.kinds[255:263] == [NORMAL] * 5 + [CONTROL] * 2 + [UNUSED]
    assert vocabulary.special["eos"] == vocabulary.tokens.index("</s>")


def test_what_is_put_around_a_text_comes_along(tmp_path):
    language.save_tokenizer(tmp_path / "a")
    assert (read_vocabulary(tmp_path / "a", 128).begins, read_vocabulary(tmp_path / "a", 128).ends) == (True, False)
    language.save_tokenizer(tmp_path / "b", begins=False)
    assert (read_vocabulary(tmp_path / "b", 128).begins, read_vocabulary(tmp_path / "b", 128).ends) == (False, False)
    language.save_tokenizer(tmp_path / "c", marks=True)
    assert (read_vocabulary(tmp_path / "c", 128).begins, read_vocabulary(tmp_path / "c", 128).ends) == (True, True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "b")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "d")
    assert read_vocabulary(tmp_path / "d", 128).template == "{{ messages[0].content }}"


def odd_marks(folder):
    tokenizer = language.save_tokenizer(folder)
    pair = processors.TemplateProcessing(single="<mask> $A", special_tokens=[("<mask>", 3)])
    tokenizer.backend_tokenizer.post_processor = pair
    tokenizer.save_pretrained(folder)


UNKNOWN_TOKENIZERS = {
    "a prefix space": (lambda f: bytes_tokenizer(f, pre_tokenizers.ByteLevel(True)), "BPE behind ByteLevel"),
    "another cut": (lambda f: bytes_tokenizer(f, pre_tokenizers.Whitespace()), "BPE behind Whitespace"),
    "lower case": (
        lambda f: bytes_tokenizer(f, pre_tokenizers.ByteLevel(False), normalizers.Lowercase()),
        r"BPE behind Lowercase \+ bytes",
    ),
    "merges ignored": (lambda f: bytes_tokenizer(f, split("{1,3}")), "has ignore_merges False"),
    "other marks": (odd_marks, r"\[3, .*nothing but the tokens of the beginning"),
}


@pytest.mark.parametrize("name", UNKNOWN_TOKENIZERS)
def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused(tmp_path, name):
    make, message = UNKNOWN_TOKENIZERS[name]
    make(tmp_path)
    with pytest.raises(ExportError, match=message) as caught:
        read_vocabulary(tmp_path, 300)
    assert "--no-tokenizer" in caught.value.hint


def test_no_tokenizer_word_pieces_and_too_many_tokens_are_refused(tmp_path):
    with pytest.raises(ExportError, match="there is no tokenizer to open"):
        read_vocabulary(tmp_path, 128)
    language.save_tokenizer(tmp_path / "a")
    with pytest.raises(ExportError, match="up to number 96, the network only 64"):
        read_vocabulary(tmp_path / "a", 64)
    inner = Tokenizer(models.WordLevel({"fish": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(tmp_path / "b")
    with pytest.raises(ExportError, match=r"\(WordLevel\)"):
        read_vocabulary(tmp_path / "b", 64)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    made, _ = cut(["model.layers.2"])
    with pytest.raises(UsageError, match="GGUF needs the package gguf") as caught:
        written(tmp_path / "m.gguf", made)
    assert "shoal[gguf]" in caught.value.hint


needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: it takes minutes to build"
)


def opened(path):  # with keys and values in float32
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)


def llama_cpp_logits(model, ids):
    model.reset()
    model.eval(ids.tolist())
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [
        *[(name, "plain", "f32") for name in UNITS],
        *[("all kinds", family, "f32") for family in FAMILIES],
        *[("all kinds", "plain", kind) for kind in DTYPES],
    ],
)
def test_llama_cpp_computes_the_same(tmp_path, name, family, kind):
    made, _ = cut(UNITS[name], randomised(FAMILIES[family]()))
    written(tmp_path / "m.gguf", made, DTYPES[kind])
    ids = language.tokens(seed=7)[0]
    actual = llama_cpp_logits(opened(tmp_path / "m.gguf"), ids)
    expected = logits(made, ids[None])[0]
    tolerance = {"f32": 1e-3, "f16": 2e-2, "bf16": 1e-1}[kind]
    assert float((actual - expected).abs().max()) < tolerance * float(expected.abs().max())


@needs_llama_cpp
def test_llama_cpp_writes_the_same_tokens(tmp_path):
    made, _ = cut(UNITS["all kinds"], randomised(FAMILIES["plain"]()))
    written(tmp_path / "m.gguf", made)
    ids = language.tokens(seed=8)[:1, :6]
    expected = made.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False, eos_token_id=-1)[0, 6:]
    model = opened(tmp_path / "m.gguf")
    model.reset()
    got, ids = [], ids[0].tolist()
    for _ in range(12):
        model.eval(ids)
        ids = [int(np.argmax(model.scores[model.n_tokens - 1]))]
        got += ids
    assert got == expected.tolist()


@needs_llama_cpp
@pytest.mark.parametrize("name", CUTS)
def test_llama_cpp_cuts_text_into_the_same_tokens(tmp_path, name):
    folder = CUTS[name](tmp_path / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    made, _ = cut(["model.layers.2"], language.llama(3, vocab_size=300))
    written(tmp_path / "m.gguf", made, vocabulary=read_vocabulary(folder, 300))
    model = opened(tmp_path / "m.gguf")
    for text in TEXTS:
        assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"]
