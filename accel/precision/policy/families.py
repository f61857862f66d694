"""What kind of module one is: the families that rules name, and which layers compute in 8 bits."""

from __future__ import annotations

import inspect
from collections.abc import Set as AbstractSet
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from accel.precision.modules import ModuleMixin

FAMILIES = ("linear", "conv", "embedding", "norm", "attention", "head")
# Names by which models call the layer that makes logits.
_HEADS = {"head", "lm_head", "output", "embed_out", "output_projection", "classifier", "score"}
_NORMS = (
    _NormBase,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Its class as its author wrote it, below those that FSDP2 and this library put before it."""
    for kind in type(module).__mro__:
        if not any(base is ModuleMixin or base.__name__ == "FSDPModule" for base in kind.__mro__):
            return kind
    raise AssertionError("every module's class derives from nn.Module itself")


def own_forward(module: nn.Module) -> object:
    """The forward of that class, as it stands there: TorchScript's is no function."""
    return inspect.getattr_static(own_class(module), "forward")


def class_names(module: nn.Module) -> frozenset[str]:
    """The names of its class and base classes, up to and without `Module`."""
    inner = {object, nn.Module}
    return frozenset(kind.__name__ for kind in own_class(module).__mro__ if kind not in inner)


def is_embedding(module: nn.Module) -> TypeGuard[nn.Embedding | nn.EmbeddingBag]:
    """Whether it looks rows up."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def families_of(
    module: nn.Module, names: tuple[str, ...], embedded: AbstractSet[int]
) -> frozenset[str]:
    """The families that it belongs to.

    Args:
        module: Any.
        names: Its qualified names in the model. A linear layer of a customary name is a head.
        embedded: Identities of the parameters of embeddings. A linear layer with one for its
            weight is a head too.
    """
    classes = class_names(module)
    found = set()
    if isinstance(module, (nn.Linear, nn.Bilinear)) or "Conv1D" in classes:  # transformers' GPT-2
        found.add("linear")
        tied = id(module._parameters.get("weight")) in embedded
        if tied or any(name.rpartition(".")[2] in _HEADS for name in names):
            found.add("head")
    if isinstance(module, _ConvNd):
        found.add("conv")
    if is_embedding(module):
        found.add("embedding")
    if isinstance(module, _NORMS) or any(name.endswith("Norm") for name in classes):
        found.add("norm")
    if any(name.endswith("Attention") for name in classes):
        found.add("attention")
    return frozenset(found)


def is_container(module: nn.Module) -> bool:
    """Whether it only holds others: it has no forward, or `nn.Sequential`'s."""
    forward = own_forward(module)
    return forward is nn.Module.forward or forward is nn.Sequential.forward


def why_not_fp8(module: nn.Module) -> str | None:
    """Why its products cannot be computed in eight bits; None where they can."""
    if not isinstance(module, nn.Linear):
        return f"eight bits are for nn.Linear only, not for {own_class(module).__name__}"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "it belongs to nn.MultiheadAttention, which reads its weight without calling it"
    if own_forward(module) is not nn.Linear.forward:
        return f"its class {own_class(module).__name__} has a forward of its own"
    if module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {str(module.weight.dtype).removeprefix('torch.')}"
    return None


def is_fused_attention(module: nn.Module) -> bool:
    """Whether it computes with its projections' weights and never calls the modules inside it."""
    return own_forward(module) is nn.MultiheadAttention.forward
