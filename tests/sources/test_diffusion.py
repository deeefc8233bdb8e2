"""Denoising networks of diffusers are calibrated on their own trajectories, and written as diffusers reads them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    model = diffusers.UNet2DModel(8, class_embed_type="timestep", norm_num_groups=2, **blocks)
    with pytest.raises(DataError, match="takes its class_labels as 'timestep'"):
        list(Trajectories(model, diffusers.DDIMScheduler(), count=1, steps=2))
    for spec in (f"diffusion:{tmp_path}", f"diffusion:{tmp_path / 'nowhere'}"):
        with pytest.raises(DataError, match="is no pipeline of diffusers"):
            load_data(spec)
    (tmp_path / "config.json").write_text('{"_class_name": "System"}')
    with pytest.raises(ShoalError, match="no network 'System'"):
        load_model(f"hf-diffusers:{tmp_path}")


@pytest.fixture
def latents(pipeline, tmp_path):
    shutil.copytree(pipeline / "scheduler", tmp_path / "scheduler")
    for name, count in (("train", 8), ("test", 2)):
        tensors = {"hidden_states": torch.randn(count, 2, 4, 4), "class_labels": torch.arange(count) % 5}
        save_file(tensors, str(tmp_path / f"{name}.safetensors"))
    return tmp_path


def test_clean_latents_are_noised_at_timesteps_of_the_scheduler(latents):
    data = load_data(f"latents:{latents}")
    batch = next(iter(data.test()))
    clean = load_file(str(latents / "test.safetensors"))["hidden_states"][:1]
    alphas = diffusers.DDIMScheduler(num_train_timesteps=100).alphas_cumprod
    steps = batch.kwargs["timestep"]
    assert len(set(steps.tolist())) == len(steps) == 12
    a = alphas[steps][:, None, None, None]
    assert torch.allclose(batch.kwargs["hidden_states"], a.sqrt() * clean + (1 - a).sqrt() * batch.target, atol=1e-5)
    assert batch.kwargs["class_labels"].tolist() == [0] * 12
    assert torch.equal(next(iter(data.test())).target, batch.target)
    result = shoal.compress(
        dit(),
        data.calibration(),
        shoal.RemoveBlocks(1),
        test=data.test(),
        config=shoal.CompressConfig(latency_seconds=0.01),
    )
    [error] = result.record.comparison.metrics
    assert (error.against, error.n, len(error.groups)) == ("labels", 24, 12)


def test_triples_are_taken_as_they_are(latents):
    shutil.rmtree(latents / "scheduler")
    with pytest.raises(DataError, match=r"has no timestep, and there is no scheduler.*\n.*Copy the folder"):
        load_data(f"latents:{latents}")
    for name in ("train", "test"):
        tensors = load_file(str(latents / f"{name}.safetensors"))
        tensors["timestep"] = torch.arange(len(tensors["hidden_states"]))
        save_file(tensors, str(latents / f"{name}.safetensors"))
    [batch] = list(load_data(f"latents:{latents}").test())
    assert {name: len(value) for name, value in batch.kwargs.items()} == dict.fromkeys(
        ("hidden_states", "class_labels", "timestep"), 2
    )
    assert batch.target is None


@pytest.mark.parametrize("count", [5, 8, 40])
def test_a_few_latents_are_enough_for_a_validation_part(tmp_path, count):
    for name in ("train", "test"):
        tensors = {"sample": torch.arange(count * 4.0).reshape(count, 1, 2, 2), "timestep": torch.arange(count)}
        save_file(tensors, str(tmp_path / f"{name}.safetensors"))
    data = load_data(f"latents:{tmp_path}")
    parts = [[*map(int, torch.cat([batch.kwargs["timestep"] for batch in part]))] for part in
             (data.calibration(), data.validation(), data.test())]  # fmt: skip
    assert sorted(parts[0] + parts[1]) == parts[2] == list(range(count))
    assert parts[1]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sample": torch.full((2, 3), torch.nan), "timestep": torch.zeros(2)}, "'sample' of .* NaN or Inf: 6 of 6"),
        ({"x": torch.zeros(2, 3)}, "holds x, and no latents"),
        ({"sample": torch.zeros(2, 3), "timestep": torch.zeros(3)}, "differ in their number of rows"),
        ({"sample": torch.zeros(0, 3), "timestep": torch.zeros(0)}, "differ in their number of rows|holds no"),
        ({"hidden_states": torch.zeros(2)}, r"are of shape \(2,\) and of torch.float32"),
        ({"hidden_states": torch.ones(2, 2, 4, 4, dtype=torch.uint8)}, "and of torch.uint8"),
        ({"hidden_states": torch.zeros(2, 4, 4)}, r"clean latents .* are of shape \(2, 4, 4\)"),
        ({"sample": torch.zeros(2, 3), "timestep": torch.zeros(2, 1)}, r"timesteps .* are of shape \(2, 1\)"),
        (
            {"hidden_states": torch.zeros(2, 3, 4, 4), "class_labels": torch.zeros(2)},
            r"\(3, 4, 4\).* in train, .*in test",
        ),
        ({"hidden_states": torch.zeros(2, 2, 4, 4)}, r"in train, .*class_labels.* in test"),
    ],
)
def test_latents_that_do_not_fit_are_refused(latents, tensors, message):
    save_file(tensors, str(latents / "train.safetensors"))
    with pytest.raises(DataError, match=message):
        load_data(f"latents:{latents}")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_scheduler_that_scales_its_inputs_gives_what_the_sampler_shows(latents, prediction):
    """Euler's noised latents grow with sigma; the network sees them scaled to a variance of one."""
    scheduler = diffusers.EulerDiscreteScheduler(num_train_timesteps=100, prediction_type=prediction)
    shutil.rmtree(latents / "scheduler")
    scheduler.save_pretrained(latents / "scheduler")
    batch = next(iter(load_data(f"latents:{latents}").test()))
    clean = load_file(str(latents / "test.safetensors"))["hidden_states"][:1]
    scheduler.set_timesteps(12)
    assert torch.equal(batch.kwargs["timestep"], scheduler.timesteps)
    sigma = scheduler.sigmas[:-1].view(-1, 1, 1, 1)
    a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    shown, target = batch.kwargs["hidden_states"], batch.target
    noise = target if prediction == "epsilon" else b * shown + a * target
    assert torch.allclose(shown, a * clean + b * noise, atol=1e-4)
    assert noise.std() == pytest.approx(1, abs=0.2)


def test_a_scheduler_that_cannot_noise_is_refused(latents):
    shutil.rmtree(latents / "scheduler")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(latents / "scheduler")
    with pytest.raises(DataError, match=r"FlowMatchEulerDiscreteScheduler does not noise .*\n.*timestep"):
        load_data(f"latents:{latents}")
