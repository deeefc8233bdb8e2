"""train(): train a network so that blocks vanish, take them out, prove and measure what came out."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from shoal.batches import device_of
from shoal.epsilon.controller import AUTO
from shoal.epsilon.finish import TrainResult, TrainRunInfo, finish
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.errors import UsageError, expect_type, naming_memory_shortage
from shoal.files.locking import holding
from shoal.intake import check_device, check_network, plain
from shoal.progress import Callbacks, ProgressCallback, as_callbacks
from shoal.recover.checkpoint import ensure_dir
from shoal.sources import Data, load_data


@naming_memory_shortage()
def train(
    model: nn.Module,
    data: Data | str,
    *,
    lose: float | None = None,
    teacher: nn.Module | None = None,
    config: EpsilonConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
) -> TrainResult:
    """Train a copy of `model` with gates, so that blocks which are not needed vanish on the way.

    Args:
        model: any network with residual blocks, from its random weights or trained already; it is left as it was.
        data: what `shoal.load_data` returns, or its specification (`digits`, `npz:FILE`); labels are needed.
        lose: the share of blocks to lose; epsilon is then held by the run itself, whatever the configuration has.
        teacher: a trained network that `model`, trained too, learns from while it loses blocks; usually the same one.
        config: how; by default the recipe for the data, see `EpsilonConfig.by_recipe`, and with a teacher
            `EpsilonConfig.fine_tuning`.
        callbacks: progress; a function is called with (stage, done, total).
        folder: for checkpoint and metrics, created if it is missing; an unfinished run there is resumed. None: neither
            is kept.
        device: where it runs; by default where the model is.

    Returns:
        The network without the lost blocks, in eval mode, with its plan and its record.

    Raises:
        UsageError: a configuration out of range, or of another kind; a folder of a run with another one; several
            processes.
        SurgeryError, TraceError: no block can be gated.
        DataError, NonFiniteError, ModelRaisedError: data, weights or model at fault.
        WeightsError: the folder holds the checkpoint of another network.
        FolderError: the folder cannot be made or is in use, or the disk is full.
    """
    data = load_data(data) if isinstance(data, str) else data
    data = expect_type(data, Data, "data", "Pass what shoal.load_data returns, or a specification like 'npz:FILE'.")
    if config is None:
        config = EpsilonConfig.by_recipe(data.spec) if teacher is None else EpsilonConfig.fine_tuning(data.spec)
    config = expect_type(config, EpsilonConfig, "config", "Like shoal.EpsilonConfig.by_recipe('cifar10', epochs=200).")
    if lose is not None:
        config = replace(config, epsilon=AUTO, lose=lose)
    check_network(model)
    if teacher is not None:
        check_network(teacher, "teacher")
    progress, model = as_callbacks(callbacks).progress, plain(model)
    teacher = plain(teacher) if teacher is not None else None
    path = ensure_dir(folder) if folder is not None else None
    where = device if device is not None else str(device_of(model))
    check_device(where)
    with holding(path), torch.inference_mode(mode=False), torch.enable_grad():
        run = EpsilonTrainer(model, data, config, folder=path, device=where, progress=progress, teacher=teacher)
        if run.engine.processes > 1:
            raise UsageError("shoal.train runs in one process", "Start the command `shoal train` with torchrun.")
        run.train()
        progress("measuring on test", 0, 1)
        return finish(run, TrainRunInfo(data=data.spec, command="shoal.train(...)"))
