import inspect
import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors import safe_open

import language
import networks
from families import NAMES, POST_NORM, family
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import FolderError
from shoal.plan import Fold, FoldStep, Plan, Remove, Replace, Replacement
from shoal.store import hugging_face, load
from shoal.store.hugging_face import write_hugging_face
from shoal.store.save import save
from shoal.surgery import input_specs, remove_blocks, signature_of


def changed(model, inputs, removed, more=()):
    """The network without these blocks, and the plan that says so."""
    batch = Batch(kwargs=inputs)
    chain = analyze(model, batch).chain
    actions = [*(Remove.named(name) for name in removed), *more]
    plan = Plan(inputs=input_specs(batch), network=signature_of(model, chain), actions=actions)
    return remove_blocks(model, batch, removed).eval(), plan


def tiny(removed=("model.layers.0", "model.layers.2"), model=None, more=()):
    model = language.llama() if model is None else model
    return changed(model, {"input_ids": language.tokens()}, list(removed), more)


def outputs(found):
    return [value for key, value in found.items() if torch.is_tensor(value) and value.is_floating_point()]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in POST_NORM])
def test_plain_transformers_computes_the_same(name, tmp_path):
    model, inputs, removed = family(name)
    if name == "modernbert" and "every_n_layers" in inspect.getsource(sys.modules[type(model).__module__]):
        pytest.skip(f"in transformers {transformers.__version__} the index of a layer of ModernBERT decides its window")
    cut, plan = changed(model, inputs, removed)
    assert write_hugging_face(tmp_path, cut, plan) is None
    kind = getattr(transformers, json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0])
    loaded, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        pairs = list(zip(outputs(cut(**inputs)), outputs(loaded(**inputs)), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in cut.parameters())
    if loaded.can_generate():
        asked = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
        cached, without = (loaded.generate(**asked, max_new_tokens=6, use_cache=use) for use in (True, False))
        assert torch.equal(cached, without)


@pytest.mark.parametrize("name", POST_NORM)
def test_what_transformers_cannot_hold_is_said(name, tmp_path):
    model, inputs, removed = family(name)
    cut, plan = changed(model, inputs, removed)
    reason = write_hugging_face(tmp_path, cut, plan)
    assert removed[0] in reason
    assert "norm" in reason.lower()
    assert "Removed with norms 'drop' nothing would be left" in (tmp_path / "hf-not-written.md").read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["hf-not-written.md"]
    assert reason in (tmp_path / "hf-not-written.md").read_text()


def test_stand_ins_and_folds_are_said(tmp_path):
    cut, plan = tiny([])
    linear = Replacement(kind="linear", layout="channels_last", in_channels=16, out_channels=16)
    span = Replace(paths=["model.layers.1"], stand_in=linear)
    reason = write_hugging_face(tmp_path, cut, plan.model_copy(update={"actions": [span]}))
    assert "a fitted stand-in took the place of model.layers.1" in reason
    cut, plan = tiny(more=[Fold(folds=[FoldStep(kind="linear", path="a.b", into=["c"])])])
    assert "folded ('a.b' first)" in write_hugging_face(tmp_path, cut, plan)


def test_other_networks_are_passed_over(tmp_path):
    model = networks.randomised(networks.PreactNet(4, 4))
    batch = Batch((torch.randn(2, 1, 8, 8),))
    plan = Plan(
        inputs=input_specs(batch),
        network=signature_of(model, analyze(model, batch).chain),
        actions=[Remove(path="blocks.1")],
    )
    assert write_hugging_face(tmp_path, remove_blocks(model, batch, ["blocks.1"]), plan) is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_done_nothing_written(tmp_path):
    cut, plan = tiny([])
    assert write_hugging_face(tmp_path, cut, plan) is None
    assert list(tmp_path.iterdir()) == []


def test_what_computes_something_else_is_not_written(tmp_path, monkeypatch):
    cut, plan = tiny()
    right = type(cut).save_pretrained

    def wrong(model, place):
        model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight * 1.5)
        right(model, place)

    monkeypatch.setattr(type(cut), "save_pretrained", wrong)
    assert "loaded again it computes something else: 'logits' is up to" in write_hugging_face(tmp_path, cut, plan)
    assert "precision" in (tmp_path / "hf-not-written.md").read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["hf-not-written.md"]


def scaled_by_index():
    settings = {"vocab_size": 64, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
    settings["attn_implementation"] = "eager"  # in transformers 5.0 no other one scales
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, scale_attn_by_inverse_layer_idx=True))


def differential():
    settings = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4}
    return transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**settings, num_attention_heads=4))


@pytest.mark.parametrize(("build", "removed"), [(scaled_by_index, "transformer.h.1"), (differential, "model.layers.1")])
def test_layers_that_depend_on_their_index_are_the_reason(build, removed, tmp_path):
    """Behind the layer that went they would compute something else; nobody changed a precision."""
    torch.manual_seed(0)
    cut, plan = changed(build().eval(), {"input_ids": torch.randint(1, 60, (2, 8))}, [removed])
    reason = write_hugging_face(tmp_path, cut, plan)
    assert "its layers depend on their index" in reason
    assert "'logits' of a shorter network of its class is up to" in reason
    note = (tmp_path / "hf-not-written.md").read_text()
    assert reason in note
    assert "precision" not in note
    assert not (tmp_path / "hf").exists()


def test_a_shorter_network_that_does_not_run_is_the_reason(tmp_path, monkeypatch):
    cut, plan = tiny()
    right = hugging_face.compact_hf_model

    def by_index(model, removed):
        short = right(model, removed)
        short.model.layers[0].register_forward_pre_hook(lambda *_: {}[3])
        return short

    monkeypatch.setattr(hugging_face, "compact_hf_model", by_index)
    reason = write_hugging_face(tmp_path, cut, plan)
    assert reason.endswith("its layers depend on their index or on how many there are, which change when layers are "
                           "removed: a shorter network of its class raises KeyError: 3")  # fmt: skip


def test_what_does_not_load_whole_is_not_written(tmp_path, monkeypatch):
    cut, plan = tiny()
    right = hugging_face.compact_hf_model

    def wrong(model, removed):
        short = right(model, removed)
        short.config.num_hidden_layers = 3  # what happens when only the module is deleted
        return short

    monkeypatch.setattr(hugging_face, "compact_hf_model", wrong)
    assert "other tensors: model.layers.2." in write_hugging_face(tmp_path, cut, plan)


@pytest.mark.parametrize("breaks", [True, False])
def test_a_cache_that_breaks_is_found(tmp_path, monkeypatch, breaks):
    cut, plan = tiny()
    right = type(cut).generate

    def wrong(self, *args, use_cache, **kwargs):
        if use_cache and breaks:
            raise IndexError("list index out of range")
        return right(self, *args, use_cache=use_cache, **kwargs) + int(use_cache)

    monkeypatch.setattr(type(cut), "generate", wrong)
    said = "cached generation fails: list index" if breaks else "generation with the cache gives other tokens"
    assert said in write_hugging_face(tmp_path, cut, plan)


def test_layers_that_were_not_renumbered_are_found(tmp_path, monkeypatch):
    cut, plan = tiny()
    made = type(cut).from_pretrained.__func__

    def without_renumbering(cls, *args, **kwargs):
        loaded, info = made(cls, *args, **kwargs)
        for layer in loaded.model.layers:
            layer.self_attn.layer_idx += 1
        return loaded, info

    monkeypatch.setattr(type(cut), "from_pretrained", classmethod(without_renumbering))
    assert "IndexError" in write_hugging_face(tmp_path, cut, plan)


def test_tied_weights_are_stored_once(tmp_path):
    cut, plan = tiny(model=language.llama(tie_word_embeddings=True))
    write_hugging_face(tmp_path, cut, plan)
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a mapping
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_half_precision_stays(tmp_path):
    language.llama().save_pretrained(tmp_path / "origin")
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "origin", dtype=torch.bfloat16)
    cut, plan = tiny(model=half)
    assert write_hugging_face(tmp_path, cut, plan) is None
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype == torch.bfloat16
    assert cut.dtype == torch.bfloat16


@pytest.fixture
def origin(tmp_path):
    """A folder as it comes from a hub, with things that must not come along."""
    folder = tmp_path / "origin"
    model = language.llama()
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    language.save_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("MIT")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def test_what_lay_beside_the_network_comes_along(origin, tmp_path):
    cut, plan = tiny(model=transformers.AutoModelForCausalLM.from_pretrained(origin))
    (tmp_path / "out").mkdir()
    assert write_hugging_face(tmp_path / "out", cut, plan) is None
    made = tmp_path / "out" / "hf"
    names = {one.name for one in made.iterdir()}
    assert {"LICENSE", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"} <= names
    assert not names & {"modeling_own.py", "pytorch_model.bin"}
    card = (made / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# Tiny\n")
    assert "Shoal" in card
    assert all(f"`{path}`" in card for path in plan.removed)
    one, two = (transformers.AutoTokenizer.from_pretrained(place) for place in (origin, made))
    assert one("deep water")["input_ids"] == two("deep water")["input_ids"]
    assert transformers.GenerationConfig.from_pretrained(made).max_new_tokens == 7
    assert json.loads((made / "config.json").read_text())["num_hidden_layers"] == 2
    # The path of this machine is nobody else's business.
    assert not [one.name for one in made.iterdir() if str(tmp_path).encode() in one.read_bytes()]


def test_files_from_the_hub_are_found_on_this_machine(origin, tmp_path, monkeypatch):
    model = language.llama()
    model.config._name_or_path = model.name_or_path = "someone/tiny"
    asked = []

    def cached(name, file, **options):
        asked.append((name, options))
        return str(origin / file)

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    cut, plan = tiny(model=model)
    (tmp_path / "out").mkdir()
    assert write_hugging_face(tmp_path / "out", cut, plan) is None
    assert (tmp_path / "out" / "hf" / "LICENSE").read_text() == "MIT"
    assert ("someone/tiny", {"local_files_only": True}) in asked


def test_it_is_written_with_the_other_files_and_again(tmp_path):
    cut, plan = tiny()
    save(tmp_path, cut, plan)
    (tmp_path / "hf" / "left").write_text("over")
    (tmp_path / "hf-not-written.md").write_text("old")
    save(tmp_path, cut, plan)
    written = {"extras.safetensors", "model.safetensors", "plan.json", "README.md", "hf"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert not (tmp_path / "hf" / "left").exists()


def test_the_network_comes_back_as_it_was(tmp_path):
    cut, plan = tiny()
    cut.train()
    before = {name: tensor.clone() for name, tensor in cut.state_dict().items()}
    state = torch.get_rng_state()
    write_hugging_face(tmp_path, cut, plan)
    assert cut.training
    assert torch.equal(torch.get_rng_state(), state)
    assert list(before) == list(cut.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in cut.state_dict().items())
    assert cut.config.num_hidden_layers == 4


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    cut, plan = tiny()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(FolderError, match="No space left"):
        write_hugging_face(tmp_path, cut, plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shoal_is_not_needed(tmp_path):
    cut, plan = tiny()
    write_hugging_face(tmp_path, cut, plan)
    code = (
        "import sys, torch, transformers\n"
        f"net = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'hf')!r})\n"
        "assert 'shoal' not in sys.modules\n"
        f"print(net(torch.arange(4, 16).view(1, -1)).logits.double().sum().item())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with torch.no_grad():
        expected = cut(torch.arange(4, 16).view(1, -1)).logits.double().sum().item()
    assert float(said.stdout.split()[-1]) == expected


@pytest.mark.parametrize("name", POST_NORM)
def test_layers_that_took_their_norms_along_leave_a_network_of_plain_transformers(name, tmp_path):
    model, inputs, removed = family(name)
    cut, plan = changed(model, inputs, [f"{path}+norms" for path in removed])
    assert write_hugging_face(tmp_path, cut, plan) is None
    kind = getattr(transformers, json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0])
    loaded, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        pairs = list(zip(outputs(cut(**inputs)), outputs(loaded(**inputs)), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    assert f"`{removed[0]}` and the norms behind its additions" in (tmp_path / "hf" / "README.md").read_text()


def test_half_a_layer_is_said_and_kept_in_the_folder_of_shoal(tmp_path):
    cut, plan = tiny(["model.layers.0", "model.layers.1#1", "model.layers.3#0"])
    save(tmp_path, cut, plan)
    note = (tmp_path / "hf-not-written.md").read_text()
    assert "only attention or MLP was removed (model.layers.1#1, model.layers.3#0)" in note
    assert (
        "no class with half a layer: model.layers.1.self_attn has no MLP behind it; model.layers.3.mlp has no" in note
    )
    assert "--nemotron-nas" in note
    again = load(tmp_path, model=language.llama)
    ids = language.tokens(seed=3)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, cut(input_ids=ids).logits)
    assert "model.layers.1.mlp.up_proj.weight" not in again.state_dict()
    assert "model.layers.1.self_attn.q_proj.weight" in again.state_dict()


def test_halves_that_make_up_whole_layers_are_a_shorter_llama(tmp_path):
    cut, plan = tiny(["model.layers.0", "model.layers.1#1", "model.layers.2#0"])
    assert write_hugging_face(tmp_path, cut, plan) is None
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.config.num_hidden_layers == 2
    ids = language.tokens(seed=3)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, cut(input_ids=ids).logits)
    generate = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **generate), loaded.generate(ids, use_cache=False, **generate))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "`model.layers.2#0`" in card
    assert "Removed (3," in card


@pytest.mark.parametrize("tied", [True, False])
def test_halves_of_a_tied_qwen2_too(tmp_path, tied):
    settings = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    torch.manual_seed(1)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings)).eval()
    cut, plan = tiny(["model.layers.1#1", "model.layers.2", "model.layers.3#0"], model)
    assert write_hugging_face(tmp_path, cut, plan) is None
    loaded = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.config.layer_types == ["full_attention"] * 2
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
