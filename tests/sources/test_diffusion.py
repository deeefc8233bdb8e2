"""Denoising networks of diffusers are calibrated on their own trajectories, and written as diffusers reads them."""

import pytest
import torch

import shoal
from shoal.errors import DataError, ShoalError
from shoal.sources import load_data, load_model
from shoal.sources.diffusion import Trajectories

diffusers = pytest.importorskip("diffusers", reason="pip install 'shoal[diffusion]'")


def dit():
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4,  # with a learned variance
        num_layers=4,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=2,
    ).eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    model = dit()
    with torch.no_grad():
        for parameter in model.parameters():  # DiT starts as zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "transformer")
    diffusers.DDIMScheduler(num_train_timesteps=100).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "DiTPipeline", "scheduler": ["diffusers", "DDIMScheduler"],'
        ' "transformer": ["diffusers", "DiTTransformer2DModel"]}'
    )
    return folder


def test_trajectories_are_what_the_sampler_shows_the_network(pipeline):
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline, subfolder="scheduler")
    model = load_model(f"hf-diffusers:{pipeline}").model
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    batches = list(Trajectories(model, scheduler, count=2, steps=3))
    hook.remove()
    assert [batch["timestep"].tolist() for batch in batches] == [[66, 66, 33, 33, 0, 0]]
    assert torch.equal(batches[0]["hidden_states"], torch.cat([call["hidden_states"] for call in seen]))
    # By hand, one step: the latent at 33 is the scheduler's step from the noise at 66.
    first = {name: values[:2] for name, values in batches[0].items()}
    scheduler.set_timesteps(3)
    with torch.no_grad():
        noise = model(**first).sample[:, :2]
    expected = scheduler.step(noise, scheduler.timesteps[0], first["hidden_states"]).prev_sample
    assert torch.allclose(batches[0]["hidden_states"][2:4], expected, atol=1e-6)
    assert set(batches[0]["class_labels"].tolist()) <= set(range(5))


def test_a_pipeline_is_its_own_data(pipeline):
    data = load_data(f"diffusion:{pipeline}")
    parts = [list(part) for part in (data.calibration(), data.validation(), data.test())]
    assert all(len(set(batch["timestep"].tolist())) == 12 for part in parts for batch in part)
    again = load_data(f"diffusion:{pipeline}")
    assert torch.equal(next(iter(again.test()))["hidden_states"], parts[2][0]["hidden_states"])


def test_a_shortened_network_is_a_folder_that_diffusers_loads(pipeline, tmp_path):
    model = load_model(f"hf-diffusers:{pipeline}").model
    data = list(Trajectories(model, diffusers.DDIMScheduler(num_train_timesteps=100), count=2, steps=2))
    result = shoal.compress(
        model, data, shoal.Blocks(("transformer_blocks.2",)), config=shoal.CompressConfig(latency_seconds=0.01)
    )
    assert result.record.outputs.task == "denoising"
    [error] = result.record.comparison.metrics
    assert list(error.groups) == ["0", "50"]
    result.save(tmp_path / "out")
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "diffusers").eval()
    assert loaded.config.num_layers == 3
    with torch.no_grad():
        assert torch.equal(loaded(**data[0]).sample, result.model(**data[0]).sample)


def test_what_diffusers_cannot_express_is_a_note(tmp_path):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    data = list(Trajectories(model, diffusers.DDIMScheduler(num_train_timesteps=100), count=1, steps=2))
    result = shoal.compress(model, data, shoal.RemoveBlocks(1), config=shoal.CompressConfig(latency_seconds=0.01))
    result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "diffusers").exists()
    assert "cannot say that" in (tmp_path / "out" / "diffusers-not-written.md").read_text()


def test_what_cannot_be_run_is_refused(pipeline, tmp_path):
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        cross_attention_dim=4,
        norm_num_groups=2,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    with pytest.raises(DataError, match="conditioned on text"):
        list(Trajectories(model, diffusers.DDIMScheduler(), count=1, steps=2))
    for spec in (f"diffusion:{tmp_path}", f"diffusion:{tmp_path / 'nowhere'}"):
        with pytest.raises(DataError, match="is no pipeline of diffusers"):
            load_data(spec)
    (tmp_path / "config.json").write_text('{"_class_name": "System"}')
    with pytest.raises(ShoalError, match="no network 'System'"):
        load_model(f"hf-diffusers:{tmp_path}")
