import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shoal.errors import NonFiniteError, WeightsError
from shoal.sources.weights import load_weights


def network(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    state = network(1).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = network(0)
    load_weights(model, path)
    assert same(model, network(1))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrapped_and_prefixed(tmp_path, wrapper, prefix):
    state = {prefix + name: value for name, value in network(1).state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "w.pt")
    model = network(0)
    load_weights(model, tmp_path / "w.pt")
    assert same(model, network(1))


def test_a_prefix_that_the_model_has_too_stays(tmp_path):
    model, other = nn.ModuleDict({"model": network(0)}), nn.ModuleDict({"model": network(1)})
    torch.save(other.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert same(model, other)


def test_shards(tmp_path):
    state = network(1).state_dict()
    names = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    model = network(0)
    load_weights(model, index)
    assert same(model, network(1))
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match="outside its folder"):
        load_weights(model, index)


def test_shards_that_are_not_all_there(tmp_path):
    state = network(1).state_dict()
    second = list(state)[1]
    names = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(state)}
    for file in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    (tmp_path / "part-1.safetensors").unlink()
    model = network(0)
    with pytest.raises(WeightsError, match=r"1 of the 3 shards that 'model\.\S+' names .*: part-1\.safetensors\n"):
        load_weights(model, index)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, "part-0.safetensors")}))
    with pytest.raises(WeightsError, match=rf"promises tensors .*'{second}' should be in 'part-0\.safetensors'"):
        load_weights(model, index)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(WeightsError, match="is not an index"):
        load_weights(model, index)
    assert same(model, network(0))


def test_a_file_that_needs_unpickling_is_refused(tmp_path):
    torch.save(network(1), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"would run code from the file\n.*safetensors"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"x" * 100])
def test_unreadable_files(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(WeightsError, match=file):
        load_weights(network(), tmp_path / file)


def test_misfits_are_listed_and_nothing_is_loaded(tmp_path):
    state = network(1, classes=7).state_dict()
    state["0.weigth"] = state.pop("0.weight")
    torch.save(state, tmp_path / "w.pt")
    model = network(0)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.pt")
    text = str(caught.value)
    assert "1 missing (0.weight (5, 4))" in text
    assert "1 unexpected (0.weigth (5, 4))" in text
    assert "2.weight (7, 5), expected (3, 5)" in text
    assert "Did you mean '0.weight'" in text
    assert same(model, network(0))


def test_nan_is_refused_and_nothing_is_loaded(tmp_path):
    state = network(1).state_dict()
    state["2.bias"][1] = float("nan")
    torch.save(state, tmp_path / "w.pt")
    model = network(0)
    with pytest.raises(NonFiniteError, match=r"1 of 3 values of '2\.bias'"):
        load_weights(model, tmp_path / "w.pt")
    assert same(model, network(0))


def test_tied_weights_may_be_saved_once(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    save_file({"embed.weight": tied(1)["embed"].weight.detach()}, tmp_path / "w.safetensors")
    model = tied(0)
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model["head"].weight, tied(1)["embed"].weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no.pt", "does not exist"), ("", "is a folder"), ("w.h5", "not a kind of weights file")],
)
def test_wrong_paths(tmp_path, name, message):
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=message):
        load_weights(network(), tmp_path / name)


def test_no_state_dict_inside(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="no state dict but list"):
        load_weights(network(), tmp_path / "w.pt")


def _named(prefix, model=None):
    return {f"{prefix}{name}": value for name, value in (model or network()).state_dict().items()}


WRAPPED = {
    "DataParallel": lambda: _named("module."),
    "twice": lambda: _named("module._orig_mod."),
    "compiled parts": lambda: {
        name.replace("0.", "0._orig_mod.", 1): one for name, one in network().state_dict().items()
    },
    "Lightning": lambda: {"state_dict": {**_named("model."), "loss.weight": torch.ones(4)}, "epoch": 3},
    "a prefix of one's own": lambda: {"epoch": 3, "state_dict": _named("net.backbone.")},
    "an average": lambda: {"n_averaged": torch.tensor(4), **_named("module.")},
    "an average alone": lambda: {"state_dict_ema": _named("")},
    "an average beside it": lambda: {"model": _named(""), "model_ema": _named("", torch.nn.Linear(3, 3))},
    "FSDP": lambda: _named("_fsdp_wrapped_module."),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_prefixes_of_wrappers(what, tmp_path):
    torch.save(WRAPPED[what](), tmp_path / "w.pt")
    model = network(1)
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[0].weight, network()[0].weight)


def test_two_networks_in_one_file_are_not_guessed_between(tmp_path):
    torch.save({**_named("model."), **_named("teacher.")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"under the prefixes 'model.', 'teacher.'"):
        load_weights(network(), tmp_path / "w.pt")


def test_a_prefix_that_does_not_fit_whole_is_taken_off_for_the_message(tmp_path):
    state = _named("model.")
    del state["model.0.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"1 missing \(0.bias"):
        load_weights(network(), tmp_path / "w.pt")
