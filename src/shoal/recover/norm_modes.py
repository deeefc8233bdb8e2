"""Which parts of a student run in training mode: batch norms, where the mini-batch is large enough, and nothing else.

Dropout stays off: the student is told what the teacher says, of which there is no end, so there is nothing to overfit
in a short run. And networks that return something else in training mode (auxiliary heads) keep to one output.
"""

from torch import nn

_BatchNorm = nn.modules.batchnorm._BatchNorm


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there is any batch norm with statistics of its own."""
    return any(isinstance(one, _BatchNorm) and one.track_running_stats for one in model.modules())


def set_train_mode_(model: nn.Module, samples: int, enough: int) -> nn.Module:
    """Eval mode, but batch norms learn their statistics where a mini-batch has `enough` samples; in place.

    Statistics of a few samples are noise: there the running ones are kept, and gamma and beta still learn.
    """
    model.eval()
    if samples >= enough:
        for one in model.modules():
            if isinstance(one, _BatchNorm):
                one.training = True
    return model
