"""Sounds reach a network as its own processor makes them, with transcripts, with what it hears, or with classes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import language
from shoal.batches import IGNORED, call
from shoal.cli.compress import task_of
from shoal.errors import DataError, SpecError
from shoal.measure import compare, paired_predictions
from shoal.sources import infer_audio_format, load_data
from shoal.sources.audio import Processor
from shoal.tasks import compare_metrics

soundfile = pytest.importorskip("soundfile", reason="pip install 'shoal[audio]'")
RATE, START, END = 8000, 3, 2
WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": (8, 8),
    "conv_stride": (10, 8),
    "conv_kernel": (10, 8),
    "feat_extract_norm": "layer",
}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    place = tmp_path_factory.mktemp("whisper")
    config = transformers.WhisperConfig(
        vocab_size=128,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_mel_bins=8,
        max_source_positions=25,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        max_target_positions=160,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=END, pad_token_id=END, decoder_start_token_id=START
    )
    model.save_pretrained(place)
    features = transformers.WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, chunk_length=1, hop_length=160)
    features.save_pretrained(place)
    language.save_tokenizer(place)
    return transformers.WhisperForConditionalGeneration.from_pretrained(place).eval()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    place = tmp_path_factory.mktemp("wav2vec")
    config = transformers.Wav2Vec2Config(
        **WAVE,
        label2id={"yes": 0, "no": 1},
        id2label={0: "yes", 1: "no"},
        num_labels=2,
    )
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(place)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(place)
    return transformers.Wav2Vec2ForSequenceClassification.from_pretrained(place).eval()


def write(path, seconds=0.5, rate=RATE, text=None, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, np.stack([0.5 * np.sin(2 * np.pi * 440 * times)] * channels, axis=1), rate)
    if text is not None:
        path.with_suffix(".txt").write_text(text)


@pytest.fixture
def sounds(tmp_path):
    for part, count in (("train", 5), ("test", 2)):
        for index in range(count):
            write(tmp_path / part / f"{index}.wav", text="a b a")
    return tmp_path


def test_features_are_those_of_the_models_own_processor(whisper, sounds):
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    [batch] = list(data.test())
    own = transformers.AutoFeatureExtractor.from_pretrained(whisper.name_or_path)
    sound, _ = soundfile.read(sounds / "test" / "0.wav", dtype="float32")
    assert torch.equal(
        batch.kwargs["input_features"][0], own(sound, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    )
    assert call(whisper, batch).logits.shape == (*batch.target.shape, 128)
    assert (data.describe()["calibration"], data.describe()["validation"]) == (4, 1)


def test_the_decoder_reads_the_words_before_each_answer(whisper, sounds):
    write(sounds / "test" / "1.wav", text="a")
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    [batch] = list(data.test())
    tokenizer = transformers.AutoTokenizer.from_pretrained(whisper.name_or_path)
    tokens = tokenizer("a b a")["input_ids"]
    assert batch.target[0].tolist() == tokens
    assert batch.kwargs["decoder_input_ids"][0].tolist() == [START, *tokens[:-1]]
    short = tokenizer("a")["input_ids"]
    assert batch.target[1].tolist() == [*short, *[IGNORED] * (len(tokens) - len(short))]
    # The last word of the shorter text is read, and padding behind it is masked.
    assert batch.kwargs["decoder_attention_mask"].sum(1).tolist() == [len(tokens), min(len(short) + 1, len(tokens))]
    assert data.decode(batch.target[:1]) == ["a b a"]


def test_without_a_transcript_it_is_what_the_network_hears(whisper, sounds):
    for path in sounds.rglob("*.txt"):
        path.unlink()
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    [batch] = list(data.test())
    assert batch.target is None
    heard = whisper.generate(input_features=batch.kwargs["input_features"], do_sample=False, max_new_tokens=128)
    read = batch.kwargs["decoder_input_ids"]
    written = heard[0].tolist()[1:] if heard[0, 0] == START else heard[0].tolist()
    assert read[0].tolist() == [START, *written[:-1]]
    assert torch.equal(next(iter(data.test())).kwargs["decoder_input_ids"], read)


def test_some_transcripts_only_are_refused(whisper, sounds):
    (sounds / "train" / "3.txt").unlink()
    with pytest.raises(DataError, match=r"1 of 5 sounds have no transcript, the first is 3\.wav\n.*or none"):
        load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper))


def test_sounds_of_any_rate_length_and_number_of_channels(classifier, tmp_path):
    for part in ("train", "val"):
        for name in ("no", "yes"):
            write(tmp_path / part / name / "0.wav", 0.5, rate=16000, channels=2)
            write(tmp_path / part / name / "1.flac", 0.25)
    data = load_data(f"audio:{tmp_path}", text_format=infer_audio_format(classifier), batch_size=4)
    [batch] = list(data.test())
    assert batch.target.tolist() == [1, 1, 0, 0]  # as the network's configuration numbers them
    assert batch.kwargs["input_values"].shape == (4, RATE // 2)
    assert batch.kwargs["attention_mask"].sum(1).tolist() == [4000, 2000, 4000, 2000]
    assert call(classifier, batch).logits.shape == (4, 2)


def test_classes_that_the_network_does_not_name_are_numbered(classifier, tmp_path):
    for part in ("train", "test"):
        for name in ("b", "a"):
            write(tmp_path / part / name / "0.wav")
    data = load_data(f"audio:{tmp_path}", text_format=infer_audio_format(classifier), batch_size=4)
    assert next(iter(data.test())).target.tolist() == [0, 1]
    write(tmp_path / "test" / "c" / "0.wav")
    with pytest.raises(DataError, match="classes that train has not: c"):
        load_data(f"audio:{tmp_path}", text_format=infer_audio_format(classifier))


def test_what_is_no_sound_is_refused(whisper, sounds, tmp_path):
    (sounds / "test" / "0.wav").write_bytes(b"no sound")
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    with pytest.raises(DataError, match=r"0\.wav' cannot be read as sound.*\n.*Remove or repair"):
        list(data.test())
    soundfile.write(sounds / "test" / "0.wav", np.full(99, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"0\.wav' cannot be read as sound: it holds NaN or Inf"):
        list(data.test())
    with pytest.raises(DataError, match=r"there is no folder '.*train'"):
        load_data(f"audio:{tmp_path / 'nothing'}", text_format=infer_audio_format(whisper))
    with pytest.raises(SpecError, match=r"does not say where the data is\n.*audio:ROOT"):
        load_data("audio:", text_format=infer_audio_format(whisper))


def test_networks_that_do_not_hear_and_processors_that_are_not_there(whisper, sounds, tmp_path):
    with pytest.raises(DataError, match=r"a network of transformers that hears, and Linear is not one"):
        infer_audio_format(nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"only be read for a network.*\n.*infer_audio_format"):
        load_data(f"audio:{sounds}")
    with pytest.raises(DataError, match=r"there is no processor in '.*nothing'.*\n.*--tokenizer"):
        load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper, tmp_path / "nothing"))


def test_words_of_the_transcripts_are_the_metric_of_a_command(whisper, classifier, sounds):
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    [metric] = compare_metrics(task_of(None, data), whisper, whisper, data.test())
    assert (metric.name, metric.against, metric.n, metric.drop) == ("wer", "labels", 2, 0.0)
    assert metric.original >= 0.5  # random weights do not say "a b a"
    assert task_of("embedding", data) == "embedding"
    assert task_of(None, load_data("digits")) is None


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """CTC whose logits are set by hand: at each moment the letter that `heard` says."""
    place = tmp_path_factory.mktemp("ctc")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}
    (place / "vocab.json").write_text(json.dumps(vocabulary))
    config = transformers.Wav2Vec2Config(**WAVE, vocab_size=7, pad_token_id=0)
    model = transformers.Wav2Vec2ForCTC(config)
    model.save_pretrained(place)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(place)
    transformers.Wav2Vec2CTCTokenizer(str(place / "vocab.json")).save_pretrained(place)
    return transformers.Wav2Vec2ForCTC.from_pretrained(place).eval()


def test_a_recogniser_by_letters(recogniser, tmp_path, monkeypatch):
    for part in ("train", "test"):
        for index, text in enumerate(("aab a", "ab")):
            write(tmp_path / part / f"{index}.wav", seconds=0.2, text=text)
    data = load_data(f"audio:{tmp_path}", text_format=infer_audio_format(recogniser), batch_size=2)
    [batch] = list(data.test())
    assert batch.target.tolist() == [[5, 5, 6, 4, 5], [5, 6, IGNORED, IGNORED, IGNORED]]
    assert data.decode(batch.target.clamp(min=0)) == ["aab a", "ab"]
    moments = call(recogniser, batch).logits.shape[1]
    heard = torch.zeros(2, moments, dtype=torch.int64)
    heard[0, :9] = torch.tensor([5, 5, 0, 5, 6, 6, 4, 0, 5])
    heard[1, :3] = torch.tensor([5, 4, 6])
    monkeypatch.setattr(recogniser, "forward", lambda **inputs: {"logits": nn.functional.one_hot(heard, 7).float()})
    [metric] = compare_metrics(task_of(None, data), recogniser, recogniser, data.test())
    assert metric.name == "wer"
    assert metric.original == pytest.approx(2 / 3)  # "a b" for "ab": one wrong word, one too many


@pytest.mark.parametrize("rate", [None, 0, -8000, 8000.5, float("nan"), float("inf"), "8000", True])
def test_a_processor_of_an_unknown_rate_is_refused(rate):
    extractor = SimpleNamespace(sampling_rate=rate)
    with pytest.raises(DataError, match=rf"hears {rate} samples in a second") as caught:
        _ = Processor(extractor, None).rate
    assert "preprocessor_config.json" in caught.value.hint


def test_a_rate_is_a_whole_number_of_any_type():
    assert Processor(SimpleNamespace(sampling_rate=8000.0), None).rate == 8000
    with pytest.raises(DataError, match="hears None samples"):
        _ = Processor(SimpleNamespace(), None).rate


def test_sounds_of_any_length_go_through_whole(whisper, recogniser, tmp_path):
    """In mini-batches of other lengths, with transcripts of other lengths."""
    for part, count in (("train", 6), ("test", 3)):
        for index in range(count):
            write(tmp_path / part / f"{index}.wav", seconds=0.2 + 0.1 * index, text="a b " * (1 + index % 2))
    for model in (whisper, recogniser):
        data = load_data(f"audio:{tmp_path}", text_format=infer_audio_format(model), batch_size=2)
        [answers] = paired_predictions([model], data.test())
        assert answers.n == 3
        assert compare(answers, answers, "test").kl == 0


def test_a_sound_that_the_network_would_hear_the_beginning_of_is_refused(whisper, sounds):
    write(sounds / "test" / "1.wav", seconds=1.5, text="a b a a b a")  # the network hears one second
    data = load_data(f"audio:{sounds}", text_format=infer_audio_format(whisper), batch_size=2)
    with pytest.raises(DataError, match=r"1.wav' lasts 1.5 s, and the network hears 1 s at a time\n.*pieces"):
        list(data.test())
