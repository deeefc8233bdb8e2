"""A folder of masks of background and foreground, and a network with one score for each pixel."""

import json

import numpy as np
import pytest

import stopwatch

Image = pytest.importorskip("PIL.Image", reason="pip install 'shoal[vision]'")

pytestmark = pytest.mark.heavy

NETWORKS = """
import torch
from torch import nn

from networks_by_task import Trunk


class Logit(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = Trunk(4, 1)

    def forward(self, x):
        return self.trunk(x)


def network():
    torch.manual_seed(0)
    return Logit().eval()


def probabilities():
    return nn.Sequential(network(), nn.Sigmoid())
"""


def test_a_folder_of_masks_on_the_command_line(run, tmp_path, monkeypatch):
    stopwatch.install(monkeypatch)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8)
    labels = (pixels[..., 0] > 127).astype(np.uint8)
    for part in ("train", "test"):
        for kind, arrays in (("images", pixels), ("masks", labels)):
            (tmp_path / part / kind).mkdir(parents=True)
            for index, array in enumerate(arrays):
                Image.fromarray(array).save(tmp_path / part / kind / f"{index}.png")
    (tmp_path / "nets.py").write_text(NETWORKS)
    words = ("nets.py:network", f"segmentation:{tmp_path}", "--size", 12, "--task", "segmentation", "--json")
    code, out, err = run("scan", *words, "--no-layers", "--out", "s")
    assert code == 0, out + err
    assert json.loads(out)["outputs"]["task"] == "segmentation"
    code, out, err = run("compress", *words, "--remove", 1, "--recover", 2, "--out", "c")
    assert code == 0, out + err
    assert [metric["against"] for metric in json.loads(out)["comparison"]["metrics"]] == ["labels", "labels"]
    code, out, _ = run("scan", "nets.py:probabilities", *words[1:], "--out", "p")
    assert code == 2
    assert "Return what the sigmoid is applied to" in json.loads(out)["error"]["hint"]
