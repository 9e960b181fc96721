"""Whether modules compute what their class says, or somebody listens to them or has changed them.

Code that reads a layer's weight instead of calling the layer asks here first.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as global_hooks


def is_hooked(module: nn.Module) -> bool:
    """Whether a module or one within it has a hook on its forward pass, or a `forward` of its own (accelerate's)."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(_is_hooked_itself(part) for part in module.modules())


def _is_hooked_itself(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)
