"""What makes cut decoders wrong without a word: indices, caches, padding, tied weights, offloading, extra heads."""

import pytest
import torch
import transformers
from torch import nn

import language
import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import SurgeryError
from shoal.scanning import removal_sweep
from shoal.surgery import remove_blocks
from shoal.surgery.hugging_face import compact_hf_model

QUICK = shoal.CompressConfig(latency_seconds=0.001)
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def qwen3_vl():
    """Features of images are added behind the first two of four layers."""
    text = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default"},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return transformers.Qwen3VLForConditionalGeneration(config).eval()


def with_image():
    ids = torch.cat([torch.tensor([[7, 5, 5, 5, 5, 8]]), torch.arange(10, 16)[None]], 1)
    pixels = torch.randn(16, 96, generator=torch.Generator().manual_seed(0))
    kinds = (ids == 5).int()
    return {
        "input_ids": ids, "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": kinds,
    }  # fmt: skip


def test_deepstack_features_stay_where_they_were_added():
    model, image = qwen3_vl(), with_image()
    text = Batch(kwargs={"input_ids": language.tokens()})
    path = "model.language_model.layers.1"
    cut = remove_blocks(model, text, [path]).eval()
    layer = model.get_submodule(path)
    with torch.no_grad():
        after_cut = cut(**image).logits
        handle = layer.register_forward_hook(lambda _module, args, _output: args[0])
        expected = model(**image).logits
        handle.remove()
    assert torch.equal(after_cut, expected)


@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_that_deepstack_counts_does_not_move(index):
    model = qwen3_vl()
    path = f"model.language_model.layers.{index}"
    cut = remove_blocks(model, Batch(kwargs={"input_ids": language.tokens()}), [path]).eval()
    with pytest.raises(
        SurgeryError, match=rf"behind the first 2 layers of .*DeepStack.*layer {index} is one of them\n.*exclude"
    ):
        compact_hf_model(cut, [path])


def test_a_layer_behind_those_of_deepstack_moves():
    model, image = qwen3_vl(), with_image()
    path = "model.language_model.layers.2"
    cut = remove_blocks(model, Batch(kwargs={"input_ids": language.tokens()}), [path]).eval()
    short = compact_hf_model(cut, [path])
    with torch.no_grad():
        assert torch.equal(short(**image).logits, cut(**image).logits)


def mixed_attention():
    """Sliding and full attention in turns, a window shorter than the text."""
    kinds = ["sliding_attention", "full_attention"] * 3
    settings = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "head_dim": 8}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4, "layer_types": kinds}
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**settings)).eval()


@pytest.mark.parametrize("removed", [(1,), (0, 3), (2, 4)])
def test_sliding_and_full_attention_keep_their_kind_with_and_without_a_cache(removed):
    model, ids = mixed_attention(), language.tokens(length=14)
    paths = [f"model.layers.{index}" for index in removed]
    cut = remove_blocks(model, Batch(kwargs={"input_ids": ids}), paths).eval()
    short = compact_hf_model(cut, paths)
    assert short.config.layer_types == [kind for n, kind in enumerate(model.config.layer_types) if n not in removed]
    for network in (cut, short):
        assert torch.equal(network.generate(ids, **GREEDY), network.generate(ids, use_cache=False, **GREEDY))
    handles = [model.get_submodule(path).register_forward_hook(lambda _m, args, _o: args[0]) for path in paths]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert torch.equal(short(input_ids=ids).logits, expected)
    assert len(handles) == len(removed)


def test_tied_embeddings_stay_one_tensor(tmp_path):
    model, ids = language.llama(tie_word_embeddings=True), language.tokens()
    data = [{"input_ids": ids, "labels": ids}]
    result = shoal.compress(model, data, shoal.RemoveBlocks(1), validation=data, test=data, config=QUICK)
    cut = result.model
    assert cut.lm_head.weight is cut.model.embed_tokens.weight
    assert sum(parameter.numel() for parameter in cut.parameters()) == result.record.compressed.cost.params
    result.save(tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, cut(input_ids=ids).logits)


def test_padding_on_the_left_changes_no_damage_and_no_answer():
    model, ids = language.llama(), language.tokens(3, 8)
    pad = torch.zeros(3, 5, dtype=torch.long)
    padded = {
        "input_ids": torch.cat([pad, ids], 1),
        "attention_mask": torch.cat([pad, torch.ones_like(ids)], 1),
        "position_ids": torch.cat([pad, torch.arange(8).expand(3, 8)], 1),
    }
    plain = Batch(kwargs={"input_ids": ids})
    paths = [f"model.layers.{n}" for n in range(4)]
    damages = [removal_sweep(analyze(model, batch), [batch], paths) for batch in (plain, Batch(kwargs=dict(padded)))]
    for alone, with_padding in zip(*damages, strict=True):
        assert with_padding.damage == pytest.approx(alone.damage, rel=1e-4)
        assert alone.damage > 0
    cut = remove_blocks(model, plain, ["model.layers.1"]).eval()
    mask = padded["attention_mask"]
    answers = cut.generate(padded["input_ids"], attention_mask=mask, **GREEDY)[:, 13:]
    assert torch.equal(answers, cut.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)[:, 8:])


@pytest.mark.parametrize("placed", ["cpu", "cpu_offload", "auto"])
def test_a_model_that_accelerate_placed_has_the_damages_of_the_plain_one(placed):
    from accelerate import cpu_offload, dispatch_model

    model, batch = language.llama(), Batch(kwargs={"input_ids": language.tokens()})
    paths = [f"model.layers.{n}" for n in range(4)]
    expected = removal_sweep(analyze(model, batch), [batch], paths)
    hooked = language.llama()
    if placed == "cpu_offload":
        cpu_offload(hooked, execution_device=torch.device("cpu"))
    else:  # hooks on every layer, as device_map="auto" leaves them
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        places |= dict.fromkeys(paths, "cpu")
        dispatch_model(hooked, {"": "cpu"} if placed == "cpu" else places, force_hooks=True)
    found = removal_sweep(analyze(hooked, batch), [batch], paths)
    assert [entry.damage for entry in found] == pytest.approx([entry.damage for entry in expected], rel=1e-6)
    assert all(entry.damage > 0 for entry in found)


class WithMoreHeads(nn.Module):
    """A decoder and a head for the token after the next, which reads the stream behind the last layer (MTP)."""

    def __init__(self):
        super().__init__()
        self.inner = language.llama()
        self.mtp = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 128))

    def forward(self, input_ids):
        hidden = self.inner.model(input_ids=input_ids, use_cache=False).last_hidden_state
        following = self.inner.model.embed_tokens(input_ids.roll(-1, 1))
        return {"logits": self.inner.lm_head(hidden), "mtp_logits": self.mtp(torch.cat([hidden, following], -1))}


def test_a_head_for_later_tokens_stays_and_counts():
    torch.manual_seed(0)
    model = WithMoreHeads().eval()
    batch = Batch(kwargs={"input_ids": language.tokens()})
    result = shoal.compress(model, [batch.kwargs], shoal.RemoveBlocks(1), validation=[batch.kwargs], config=QUICK)
    assert {output.name for output in result.record.outputs.outputs} == {"logits", "mtp_logits"}
    [removed] = result.record.removed
    assert removed.startswith("inner.model.layers.")
    with torch.no_grad():
        handle = model.get_submodule(removed).register_forward_hook(lambda _m, args, _o: args[0])
        expected = model(**batch.kwargs)
        handle.remove()
        outputs = result.model(**batch.kwargs)
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)


def test_what_a_configuration_records_and_the_model_does_not_obey_is_not_believed(tmp_path):
    """`per_layer_config` may say that a layer is skipped: a Llama of transformers builds and runs it all the same."""
    ids = language.tokens()
    model = language.llama(per_layer_config={"1": {"skip": ["mlp"]}})
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, language.llama()(input_ids=ids).logits)
    network = shoal.trace(model, {"input_ids": ids})
    assert [len(block.units) for block in network] == [2] * 4
    data = [{"input_ids": ids, "labels": ids}]
    result = shoal.compress(model, data, shoal.RemoveBlocks(1), validation=data, test=data, config=QUICK)
    result.save(tmp_path / "out")
    if (tmp_path / "out" / "hf").exists():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
        assert len(loaded.model.layers) == 3
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids).logits, result.model(input_ids=ids).logits)
