"""Forward-mode AD (`torch.func.jvp`), which would drop what it carries at an operator: an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad


def refuse_tangents(*tensors: Tensor) -> None:
    """Refuse inputs with tangents: the derivative would silently be 0.

    Raises:
        RuntimeError: One has one, at whichever level of nested transforms.
    """
    if forward_ad._current_level >= 0 and any(_has_tangent(tensor) for tensor in tensors):
        raise RuntimeError(
            "contrastive losses have no forward-mode derivative, as torch.func.jvp, jacfwd and "
            "hessian take it: take reverse mode (backward or torch.autograd.grad), or the "
            "dense formula"
        )


def _has_tangent(tensor: Tensor) -> bool:
    """Every transform wraps what it works on, and sees nothing of what is inside."""
    functorch: Any = torch._C._functorch
    transform = functorch.peek_interpreter_stack()
    if transform is None:
        return forward_ad.unpack_dual(tensor).tangent is not None
    is_its_own = functorch.maybe_get_level(tensor) == transform.level()
    may_have_one = is_its_own and transform.key() == functorch.TransformType.Jvp
    if may_have_one and forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    with temporarily_pop_interpreter_stack():
        return _has_tangent(functorch.get_unwrapped(tensor) if is_its_own else tensor)
