"""The tensors in an encoder's inputs, and whether they are still what they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors_of(inputs: Any) -> Iterator[Tensor]:
    """Every tensor in what `accel.alignment.inputs.row_count` takes, those in lists too.

    Not `tree_leaves` of torch, to which a dataclass, and a mapping of a class of its own such as a
    tokenizer's batch, are one leaf.

    Args:
        inputs: A tensor, or a mapping, sequence or dataclass of such; what is none of these has no
            tensors.
    """
    if isinstance(inputs, Tensor):
        yield inputs
    else:
        for part in _parts(inputs):
            yield from tensors_of(part)


def _parts(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, Mapping):
        return inputs.values()
    if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, bytearray)):
        return inputs
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        return [getattr(inputs, field.name) for field in dataclasses.fields(inputs)]
    return ()


class InputWatch:
    """Notices tensors that were changed in place, by their versions, as autograd does.

    Like autograd it sees neither what is done through `.data` or NumPy, nor a change of an
    inference tensor, which has no version.

    Args:
        inputs: By modality.
    """

    def __init__(self, inputs: Sequence[tuple[str, Any]]) -> None:
        self._seen = [
            (modality, tensor, tensor._version)
            for modality, one in inputs
            for tensor in tensors_of(one)
            if not tensor.is_inference()
        ]

    def check(self) -> None:
        """Refuse to go on with others.

        Raises:
            RuntimeError: A tensor was changed in place since this was made.
        """
        for modality, tensor, version in self._seen:
            if tensor._version != version:
                raise RuntimeError(
                    f"an input of {modality!r}, {tensor.dtype} of shape {[*tensor.shape]}, was "
                    f"changed in place after caching was given it (version {tensor._version}, "
                    f"expected {version}), and the backward encodes it again: change a copy, or "
                    "change it after the backward; an encoder must not change its inputs either"
                )
