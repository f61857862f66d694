"""A trained encoder as an ONNX file: encoder, projection and normalisation, for any batch size."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from accel.alignment.aligner import Aligner
from accel.alignment.inputs import row_count
from accel.errors import BackendError
from accel.report import check_writable, write_atomically

_LARGEST = 2**31 - 2**20  # bytes; protobuf holds no message of 2 GiB
_OUTPUT, _ROWS = "embedding", "batch"


class _Encode(nn.Module):
    """One modality of an aligner, as a module of its own."""

    def __init__(self, aligner: Aligner, modality: str) -> None:
        super().__init__()
        self.aligner, self.modality = aligner, modality

    def forward(self, inputs: Any) -> Tensor:
        return self.aligner.encode(self.modality, inputs)


def export_onnx(
    aligner: Aligner, modality: str, example_inputs: Any, path: str | os.PathLike[str]
) -> None:
    """Write what `aligner.encode(modality, ...)` computes as an ONNX file.

    The program takes inputs of the example's shapes with any number of rows, and returns
    `embedding`, `[B, dim]`, rows of length 1. It is exported in evaluation mode; the aligner itself
    is not changed. It is written whole or not at all.

    Args:
        aligner: Trained; on any device.
        modality: Whose encoder.
        example_inputs: A batch for it of at least 2 rows: a tensor, or tensors in mappings, lists
            and tuples. Their first dimension is that of samples.
        path: The file; replaced if it exists.

    Raises:
        BackendError: onnx or onnxscript is not installed, or an operator has no counterpart.
        TypeError: The example holds something else than tensors.
        ValueError: The modality is unknown, the example does not serve, the number of rows is fixed
            in the encoder, or the weights are more than one file can hold (2 GiB).
        OSError: The file cannot be written.
    """
    _check_packages()
    check_writable(path)
    _check(aligner, modality, example_inputs)
    # A copy, so that evaluation mode and the exporter leave no trace in a model that is trained.
    twin = copy.deepcopy(aligner).eval()
    with _quiet(), torch.no_grad():
        embedding = twin.encode(modality, example_inputs)
        if len(embedding) != row_count(example_inputs):
            raise ValueError(
                f"the encoder of {modality!r} makes {len(embedding)} embeddings of "
                f"{row_count(example_inputs)} rows: give inputs whose first dimension is samples"
            )
        program = _program(_Encode(twin, modality).eval(), modality, example_inputs)
    write_atomically(path, program)


def _program(module: _Encode, modality: str, inputs: Any) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    shapes = torch.utils._pytree.tree_map(lambda _: {0: batch}, inputs)
    names = _names(modality, inputs)
    try:
        # As a keyword: the exporter takes a mapping at the end of the arguments for keywords.
        traced = torch.export.export(
            module, (), {"inputs": inputs}, dynamic_shapes={"inputs": shapes}, strict=False
        )
        exported = torch.onnx.export(traced, dynamo=True, verbose=False)
    except (RuntimeError, NotImplementedError, torch._dynamo.exc.UserError) as error:
        raise _refused(modality, error) from error
    if exported is None:
        raise BackendError(f"torch.onnx.export gave no program for {modality!r}")
    rows = exported.model.graph.outputs[0].shape
    if rows is not None and isinstance(rows[0], int):
        raise ValueError(
            f"the encoder of {modality!r} fixes the number of rows at {rows[0]}: take it from the "
            "inputs' shape instead"
        )
    _rename(exported.model, names)
    return bytes(exported.model_proto.SerializeToString())


def _rename(model: Any, inputs: list[str]) -> None:
    """Give inputs, output and batch dimension their names; the exporter would allow doublets."""
    graph = model.graph
    (output,) = graph.outputs
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in {*inputs, _OUTPUT}:
                value.name = f"{value.name}_inside"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
        value.shape[0] = _ROWS
    output.name = _OUTPUT
    output.shape[0] = _ROWS


def _refused(modality: str, error: BaseException) -> Exception:
    """The first cause, without the exporter's advice around it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or ["no message"]
    first = lines[0].split(" For more information")[0]
    said = f"the encoder of {modality!r} cannot be exported to ONNX ({first})"
    if isinstance(cause, torch._dynamo.exc.UserError):
        return ValueError(f"{said}; its forward must work alike for every number of rows")
    return BackendError(f"{said}; replace that operator in the encoder")


def _names(modality: str, inputs: Any) -> list[str]:
    """`image` for a tensor; for more of them, also where they are: `text_mask`."""
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(inputs)
    places = ["_".join(str(_key(part)) for part in path) for path, _ in leaves]
    return [f"{modality}_{place}" if place else modality for place in places]


def _key(part: Any) -> Any:
    return next(getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name))


def _check(aligner: Aligner, modality: str, inputs: Any) -> None:
    if not isinstance(aligner, Aligner):
        raise TypeError(
            f"export_onnx takes an Aligner, not {type(aligner).__name__}: of what wraps one give "
            "its .aligner or .module"
        )
    if modality not in aligner.modalities:
        raise ValueError(
            f"there is no modality {modality!r}; there are {', '.join(aligner.modalities)}"
        )
    if modality == _OUTPUT:
        raise ValueError(
            f"the program's output is called {_OUTPUT!r}: call the modality something else"
        )
    leaves = torch.utils._pytree.tree_leaves(inputs)
    others = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
    if others or not leaves:
        raise TypeError(
            f"example_inputs must be tensors, alone or in mappings, lists and tuples; got "
            f"{', '.join(others) or 'nothing'}"
        )
    scalars = [leaf for leaf in leaves if not leaf.ndim]
    rows = None if scalars else row_count(_flat(leaves))
    if rows is None or rows < 2:
        raise ValueError(
            "example_inputs must have at least 2 rows in the first dimension of every tensor, got "
            f"shapes {[list(leaf.shape) for leaf in leaves]}: 0 and 1 are special cases to torch"
        )
    size = sum(t.nbytes for m in _parts(aligner, modality) for t in m.state_dict().values())
    if size > _LARGEST:
        raise ValueError(
            f"{modality!r} has {size / 2**30:.1f} GiB of weights and an ONNX file holds at most 2 "
            "GiB: convert it to half precision first"
        )


def _flat(leaves: list[Tensor]) -> Mapping[str, Tensor]:
    return {str(index): leaf for index, leaf in enumerate(leaves)}


def _parts(aligner: Aligner, modality: str) -> list[nn.Module]:
    parts = [aligner.encoders[modality]]
    if modality in aligner.projections:
        parts.append(aligner.projections[modality])
    return parts


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"exporting to ONNX needs onnx and onnxscript ({error}): "
            'pip install "accel-torch[onnx]"'
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: a deprecation, and that torchvision is missing."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            # Several inputs of a modality have one number of rows, which has one name.
            warnings.filterwarnings("ignore", message=".*shares the same shape.*")
            yield
    finally:
        logger.setLevel(before)
