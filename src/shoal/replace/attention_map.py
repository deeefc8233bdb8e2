"""The module that stands where an attention was: one linear map of the normalised stream."""

from typing import Any

import torch
from torch import Tensor, nn

from shoal.plan import TokenMap
from shoal.preserve import no_hook
from shoal.replace.output_format import copy_plain_attrs_

# Weights of a quantised attention are in none of these: a map is never quantised.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class AttentionMap(nn.Module):
    """A linear map without bias of one argument of the module it replaces, in the form that module returned.

    It looks at no other token, so it has no cache and needs no mask. In eval mode, of zeros.

    Args:
        token_map: what is mapped, and the form.
        width: features of a token.
        replaced: its plain attributes are copied, since the network's code may read them.
    """

    def __init__(self, token_map: TokenMap, width: int, replaced: nn.Module) -> None:
        super().__init__()
        self._argument, self._outputs = token_map.argument, token_map.outputs
        self.linear_attn = nn.Linear(width, width, bias=False, device="meta")
        like = next((each for each in replaced.parameters() if each.dtype in _DTYPES), torch.zeros(()))
        self.linear_attn.weight = nn.Parameter(torch.zeros(width, width, dtype=like.dtype, device=like.device))
        for name, _ in replaced.named_parameters(recurse=False):
            self.register_parameter(name, None)
        copy_plain_attrs_(self, replaced)
        vars(self).pop("layer_idx", None)  # its slot of the cache is no longer one
        self.register_forward_hook(no_hook)
        self.eval()

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The tensor that is mapped, of the arguments of a call."""
        tensor: Tensor = args[self._argument] if isinstance(self._argument, int) else kwargs[self._argument]
        return tensor

    def output_of(self, returned: Any) -> Tensor:
        """The tensor that the map stands for, of what the replaced module returned."""
        tensor: Tensor = returned if self._outputs is None else returned[0]
        return tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The map, (samples, ..., width) to the same shape."""
        mapped = self.linear_attn(self.input_of(args, kwargs))
        return mapped if self._outputs is None else (mapped, *[None] * (self._outputs - 1))
