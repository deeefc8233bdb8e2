"""Recovery on the same tokens for every method: distillation of the original's probabilities."""

from typing import Any

import torch
from torch import nn

from decoders.ground import Ground

_RATE, _TOKENS = 1e-4, 512  # of a step on a CPU; on a GPU eight times as many


def own_weights_(model: Any) -> Any:
    """Give a network that shares the original's weights its own, tied ones still tied."""
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().clone())
            setattr(module, name, copies[id(parameter)])
    return model


def recover_(model: Any, ground: Ground, tokens: int, *, last_only: bool = False) -> Any:
    """Distil on so many tokens of the lessons, over and over; `last_only`: the head and the last three layers.

    On a GPU forwards are in bfloat16, the weights that learn and their gradients in float32.
    """
    own_weights_(model).requires_grad_(not last_only)
    if last_only:
        for part in (*model.model.layers[-3:], model.model.norm, model.lm_head):
            part.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0)
    device, (count, length) = ground.lessons.device, ground.lessons.shape
    size = (8 if device.type == "cuda" else 1) * _TOKENS // length
    steps = max(1, tokens // (size * length))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    done = 0
    while done < steps:
        for rows in torch.randperm(count, generator=generator).split(size):
            ids = ground.lessons[rows]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                with torch.no_grad():
                    target = ground.model(input_ids=ids, use_cache=False).logits
                logits = model(input_ids=ids, use_cache=False).logits
            target, logits = (each.float().log_softmax(-1) for each in (target, logits))
            loss = nn.functional.kl_div(logits, target, reduction="none", log_target=True).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    return model.eval().requires_grad_(False)
