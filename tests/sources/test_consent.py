import pytest

from shoal.errors import ConsentError
from shoal.sources import Consent, load_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("")
    (tmp_path / "link.py").symlink_to("net.py")
    (tmp_path / "below").mkdir()
    return tmp_path


def consent(*words, trust_code=False):
    return Consent.of_specs(words, trust_code=trust_code)


@pytest.mark.parametrize(
    "typed",
    ["net.py:build", "./net.py:build", "below/../net.py:build", "link.py:build", " net.py:build ", "{}/net.py:build"],
)
def test_the_same_function_of_the_same_file_however_it_is_spelled(here, typed):
    for word in (typed.format(here), f"--teacher={typed.format(here)}"):
        assert consent("compress", word, "digits").covers("net.py:build")
        consent(word).check("below/../link.py:build", "a plan")


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("net.py:build", "net.py:other"),
        ("net.py:build", "below/net.py:build"),
        ("net.py", "net.py:build"),
        ("out", "net.py:build"),
        ("digits-resnet", "net.py:build\n"),
        ("digits-resnet", "  net.py:build"),
        ("digits-resnet", "\x00.py:build"),
        ("digits-resnet", "~nobody-of-this-name/net.py:build"),
    ],
)
def test_another_function_or_file_is_refused(here, typed, named):
    with pytest.raises(ConsentError, match=r"(?s)plan.json names '.*would run that file\n.*--trust-code"):
        consent(typed).check(named, "plan.json")
    consent(typed, trust_code=True).check(named, "plan.json")


@pytest.mark.parametrize(
    "spec", ["digits", "digits-resnet", "torchvision:resnet18", "hf:somebody/network", "npz:x.npz", ""]
)
def test_what_runs_no_file_needs_no_consent_to_run(here, spec):
    consent().check(spec, "plan.json")
    assert not consent().covers(spec)


@pytest.mark.parametrize("spec", ["hf:some/network", "timm:resnet18@pretrained", "torchvision:resnet18@pretrained"])
def test_nothing_is_fetched_unasked(tmp_path, monkeypatch, spec):
    import socket

    import torch

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConsentError, match=r"would have to be downloaded, which was not requested"):
        load_model(spec, fetch=False)
