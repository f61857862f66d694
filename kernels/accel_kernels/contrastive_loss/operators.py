"""`torch.ops.accel_kernels.contrastive_*`: the passes as operators, for eager and traced code.

They have fake and autograd rules. The softmax loss saves its inputs and log-sum-exps, the sigmoid
loss its inputs and the gradients that its forward has computed, in float32 for 16-bit inputs: both
are linear in the rows. What a kernel's name
stands for is looked up when an operator runs, so that traced programs hold names only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from accel_kernels.contrastive_loss.arguments import NAME, accumulation_dtype
from accel_kernels.contrastive_loss.pairing import Guide, Pairing
from accel_kernels.contrastive_loss.passes import Passes, SoftmaxGradients

# A log-sum-exp that is rounded to float32 makes probabilities wrong by its rounding: up to here no
# more than the rounding of logits of that size. Rows of norm 1 at a scale of 100 stay below, unless
# a partner is nearly opposite.
_LARGE = 128.0

_PAIRING = (
    "Tensor x_sample, Tensor y_sample, Tensor? x_group, Tensor? y_group, str duplicates, "
    "Tensor? guide_x, Tensor? guide_y, Tensor? x_threshold, Tensor? y_threshold, float hardness"
)
_SOFTMAX = (
    f"Tensor x, Tensor y, Tensor scale, Tensor x_reference, Tensor y_reference, {_PAIRING}, "
    "str backend"
)
_PAIRING_SIZE = _PAIRING.count(",") + 1
_library = torch.library.Library("accel_kernels", "FRAGMENT")
_library.define(
    f"contrastive_softmax({_SOFTMAX}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    f"contrastive_softmax_backward({_SOFTMAX}, Tensor x_lse, Tensor y_lse, Tensor grad_x_lse, "
    "Tensor grad_y_lse, Tensor grad_x_positive, Tensor grad_y_positive) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "contrastive_sigmoid_backward(Tensor gradient, Tensor x, Tensor y, Tensor scale, Tensor bias, "
    "Tensor grad_x, Tensor grad_y, Tensor grad_scale, Tensor grad_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    f"contrastive_sigmoid(Tensor x, Tensor y, Tensor scale, Tensor bias, {_PAIRING}, str backend, "
    "bool with_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
softmax = torch.ops.accel_kernels.contrastive_softmax.default
softmax_backward = torch.ops.accel_kernels.contrastive_softmax_backward.default
sigmoid = torch.ops.accel_kernels.contrastive_sigmoid.default
_sigmoid_backward = torch.ops.accel_kernels.contrastive_sigmoid_backward.default
_passes: dict[str, Passes] = {}


def register(name: str, passes: Passes) -> None:
    """Make a kernel known to the operators; `name` as in its spec."""
    _passes[name] = passes


def passes_of(name: str) -> Passes:
    """A kernel by name, imported if it is one of this package's.

    Raises:
        ValueError: There is none.
    """
    if name not in _passes:
        from accel_kernels.contrastive_loss import SPECS

        for spec in SPECS:
            if spec.name == name:
                loaded: Any = spec.load()
                register(name, loaded)
    if name not in _passes:
        raise ValueError(
            f"{NAME} has no kernel called {name!r}: name one of its specs, or register it with "
            "accel_kernels.contrastive_loss.operators.register"
        )
    return _passes[name]


def name_of(passes: Passes) -> str:
    """The name by which a kernel is registered; one that is not gets a name of its own."""
    for name, known in _passes.items():
        if known is passes:
            return name
    name = f"kernel {len(_passes)}"
    register(name, passes)
    return name


def encoded(pairing: Pairing) -> tuple[Any, ...]:
    """A pairing as operators take it."""
    guide = (None,) * 4 if pairing.guide is None else pairing.guide
    return (*pairing[:4], pairing.duplicates, *guide, float(pairing.hardness))


def _decoded(
    x_sample: Tensor,
    y_sample: Tensor,
    x_group: Tensor | None,
    y_group: Tensor | None,
    duplicates: Any,
    guide_x: Tensor | None,
    guide_y: Tensor | None,
    x_threshold: Tensor | None,
    y_threshold: Tensor | None,
    hardness: float,
) -> Pairing:
    guide = None
    if guide_x is not None:
        guide = Guide(guide_x, guide_y, x_threshold, y_threshold)  # type: ignore[arg-type]
    return Pairing(x_sample, y_sample, x_group, y_group, duplicates, guide, hardness)


def _as_given(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast would take the products of a loss in 16 bits, whatever its embeddings are."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


# --- softmax -----------------------------------------------------------------------------------


def _compute_softmax(*given: Any) -> tuple[Tensor, ...]:
    *inputs, backend = given
    passes: Any = passes_of(backend)
    with torch.no_grad(), _as_given(inputs[0]):
        found = passes.softmax(*inputs[:5], _decoded(*inputs[5:]))
    return tuple(found)


def _compute_softmax_backward(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, (backend, *lses, _, _, _, _) = given[:-7], given[-7:]
    gradients = SoftmaxGradients(*given[-4:])
    passes: Any = passes_of(backend)
    pairing, references = _decoded(*inputs[5:]), list(inputs[3:5])
    with torch.no_grad(), _as_given(inputs[0]):
        if passes.reads_values and are_large(lses, gradients):
            references = [moved(*pair) for pair in zip(references, lses, strict=True)]
            lses = passes.softmax(*inputs[:3], *references, pairing)[:2]
        found = passes.softmax_backward(*inputs[:3], *references, pairing, *lses, gradients)
    return found.x, found.y, found.scale


def are_large(lses: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
    """Whether a row's log-sum-exp that has a gradient is too large for its rounding."""
    return any(
        bool(((lse.abs() > _LARGE) & lse.isfinite() & (gradient != 0)).any())
        for lse, gradient in zip(lses, gradients, strict=False)
    )


def moved(reference: Tensor, lse: Tensor) -> Tensor:
    """A reference from which the log-sum-exp is near 0: the two are its parts, high and low."""
    return reference + torch.where(lse.isfinite(), lse, 0.0)


def _fake_softmax(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    wide = accumulation_dtype(x.dtype)
    return tuple(side.new_empty(side.shape[:1], dtype=wide) for _ in range(3) for side in (x, y))


def _fake_softmax_backward(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(x.dtype)
    return (*(t.new_empty(t.shape, dtype=wide) for t in (x, y)), x.new_empty((), dtype=wide))  # type: ignore[return-value]


def _save_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, (*inputs, *output[:2]))


def _differentiate_softmax(ctx: Any, *gradients: Tensor | None) -> Any:
    *inputs, x_lse, y_lse = _saved(ctx)
    given = [
        torch.zeros_like(lse) if gradient is None else gradient
        for gradient, lse in zip(gradients, (x_lse, y_lse, x_lse, y_lse), strict=False)
    ]
    x, y, scale = softmax_backward(*inputs, x_lse, y_lse, *given)
    # Not of the references: no loss depends on them.
    return (x.to(inputs[0].dtype), y.to(inputs[1].dtype), scale, *(None,) * (len(inputs) - 3))


# --- sigmoid -----------------------------------------------------------------------------------


def _compute_sigmoid(*given: Any) -> tuple[Tensor, ...]:
    *inputs, backend, with_gradients = given
    x, scale = inputs[0], inputs[2]
    passes: Any = passes_of(backend)
    with torch.no_grad(), _as_given(x):
        total, found = passes.sigmoid(
            *inputs[:4], _decoded(*inputs[4:]), with_gradients=with_gradients
        )
    if found is None:
        return total, *(scale.new_empty(0) for _ in range(4))
    # Not in 16 bits yet: these are of the sum, which a loss divides by the number of its rows.
    return total, *found


def _fake_sigmoid(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    if not rest[-1]:
        return scale.new_empty(()), *(scale.new_empty(0) for _ in range(4))
    wide = accumulation_dtype(x.dtype)
    return scale.new_empty(()), *(t.new_empty(t.shape, dtype=wide) for t in (x, y, scale, bias))


def _save_sigmoid(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if not inputs[-1]:
        raise RuntimeError(
            "contrastive_sigmoid: with_gradients=False, but a gradient is wanted: pass True, or "
            "call it under torch.no_grad()"
        )
    _save(ctx, (*inputs[:4], *output[1:]))
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_sigmoid(ctx: Any, gradient: Tensor | None, *others: Tensor | None) -> Any:
    unused = (None,) * (_PAIRING_SIZE + 2)
    if gradient is None:
        return (*(None,) * 4, *unused)
    return (*_sigmoid_backward(gradient, *_saved(ctx)), *unused)


def _compute_sigmoid_backward(gradient: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """From the embeddings too, for the sake of a second derivative, which is then refused."""
    return tuple(
        (gradient.to(saved.dtype) * saved).to(given.dtype)
        for given, saved in zip(rest[:4], rest[4:], strict=True)
    )


def _fake_sigmoid_backward(gradient: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return tuple(given.new_empty(given.shape) for given in rest[:4])


# --- both --------------------------------------------------------------------------------------


def _save(ctx: Any, items: tuple[Any, ...]) -> None:
    """Tensors as autograd wants them saved, and the rest."""
    ctx.save_for_backward(*(item if isinstance(item, Tensor) else None for item in items))
    ctx.rest = [None if isinstance(item, Tensor) else item for item in items]
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> list[Any]:
    return [b if a is None else a for a, b in zip(ctx.saved_tensors, ctx.rest, strict=True)]


def _refuse_second_derivatives(*given: Any) -> NoReturn:
    raise RuntimeError(
        "contrastive losses have first derivatives only: take the dense formula for second ones, "
        "or call backward without create_graph=True"
    )


def _register() -> None:
    for name, compute, fake in (
        ("contrastive_softmax", _compute_softmax, _fake_softmax),
        ("contrastive_softmax_backward", _compute_softmax_backward, _fake_softmax_backward),
        ("contrastive_sigmoid", _compute_sigmoid, _fake_sigmoid),
        ("contrastive_sigmoid_backward", _compute_sigmoid_backward, _fake_sigmoid_backward),
    ):
        _library.impl(name, compute, "CompositeExplicitAutograd")
        torch.library.register_fake(f"accel_kernels::{name}", fake, lib=_library)
    for name, differentiate, save in (
        ("contrastive_softmax", _differentiate_softmax, _save_softmax),
        ("contrastive_softmax_backward", _refuse_second_derivatives, None),
        ("contrastive_sigmoid", _differentiate_sigmoid, _save_sigmoid),
        ("contrastive_sigmoid_backward", _refuse_second_derivatives, None),
    ):
        torch.library.register_autograd(
            f"accel_kernels::{name}", differentiate, setup_context=save, lib=_library
        )


_register()
