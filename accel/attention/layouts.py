"""Named axes of other libraries' attention tensors, as `"b t (h d)"`.

`b` batch, `h` heads, `t` queries (of all documents, where there is no `b`), `d` head size;
parentheses hold axes that lie merged in one; a number is a repetition of the same value.
"""

from __future__ import annotations

import math
import re

from torch import Tensor


def groups_of(layout: str) -> list[list[str]]:
    """One list of axes for each dimension of a tensor."""
    found: list[str] = re.findall(r"\([^)]*\)|\S+", layout)
    return [group.strip("()").split() for group in found]


def to_axes(
    what: str, tensor: Tensor, layout: str, axes: str, sizes: dict[str, int], padded: str = ""
) -> Tensor:
    """A view of a tensor with the dimensions `axes`, such as `"bhtd"`.

    Args:
        what: Its name, for messages.
        tensor: Of the layout.
        layout: As above.
        axes: Wanted, each a dimension; `b` is of size 1 where the layout has none.
        sizes: What is known; what is found is added.
        padded: An axis that may be longer than known, the rest being padding.

    Raises:
        ValueError: It is not of that layout or these sizes.
    """
    groups = groups_of(layout)
    where = f"{what} must be laid out as [{layout}]"
    if tensor.dim() != len(groups):
        raise ValueError(f"{where}, with {len(groups)} dimensions, not {tuple(tensor.shape)}")
    order: list[str] = []
    for dim in reversed(range(len(groups))):
        group, size = groups[dim], tensor.shape[dim]
        if group[0].isdigit():
            if size != int(group[0]):
                raise ValueError(f"{where}, not {tuple(tensor.shape)}: dimension {dim} is {size}")
            tensor = tensor.select(dim, 0)
            continue
        if group == [padded] and size >= sizes[padded]:
            tensor = tensor.narrow(dim, 0, sizes[padded])
        else:
            _learn(where, group, size, sizes)
        if len(group) > 1:
            tensor = tensor.unflatten(dim, [sizes[axis] for axis in group])
        order = group + order
    if "b" not in order:
        tensor, order = tensor.unsqueeze(0), ["b", *order]
        _learn(where, ["b"], 1, sizes)
    return tensor.permute([order.index(axis) for axis in axes])


def from_axes(what: str, tensor: Tensor, axes: str, layout: str) -> Tensor:
    """The reverse: a contiguous tensor of a layout from one with the dimensions `axes`.

    Raises:
        ValueError: The layout has no batch and there is more than one entry.
    """
    groups, order = groups_of(layout), list(axes)
    named = [axis for group in groups for axis in group if not axis.isdigit()]
    if "b" not in named:
        if tensor.shape[0] != 1:
            raise ValueError(
                f"{what} of a batch of {tensor.shape[0]} cannot be laid out as [{layout}], which "
                "has no batch; pack the documents into one"
            )
        tensor, order = tensor.squeeze(0), order[1:]
    tensor = tensor.permute([order.index(axis) for axis in named]).contiguous()
    shape, dim = [], 0
    for group in groups:
        if group[0].isdigit():
            continue
        shape.append(math.prod(tensor.shape[dim : dim + len(group)]))
        dim += len(group)
    tensor = tensor.reshape(shape)
    for dim, group in enumerate(groups):
        if group[0].isdigit():
            tensor = tensor.unsqueeze(dim).repeat_interleave(int(group[0]), dim)
    return tensor


def _learn(where: str, group: list[str], size: int, sizes: dict[str, int]) -> None:
    """Check a dimension against known sizes, and take from it the one that is not known."""
    unknown = [axis for axis in group if axis not in sizes]
    known = math.prod(sizes[axis] for axis in group if axis in sizes)
    if len(unknown) > 1:
        raise ValueError(f"{where}; give sizes= (B, H, T), which it does not tell")
    if unknown:
        if known == 0 or size % known:
            raise ValueError(f"{where}: a size of {size} is not divided by {known}")
        sizes[unknown[0]] = size // known
    elif size != known:
        names = " * ".join(group)
        raise ValueError(f"{where}: {names} must be {known} as in the other tensors, not {size}")
