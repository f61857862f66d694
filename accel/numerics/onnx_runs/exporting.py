"""A model's forward as a program of torch operators, and as ONNX made from it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from accel.errors import BackendError
from accel.numerics.onnx_runs.alignment import align
from accel.numerics.onnx_runs.boundaries import Places, steady_modules, take_places
from accel.numerics.onnx_runs.packages import check_present
from accel.numerics.onnx_runs.provenance import counterparts

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

_LARGEST = 2**31 - 2**20  # bytes; protobuf holds no message of 2 GiB


@dataclass(frozen=True, eq=False)
class Exported:
    """A model's forward for one set of inputs.

    Attributes:
        program: The operators that torch would run, in order, with the modules they run in.
        model: The ONNX program made from it.
        names: Values of `program` to those of `model` that hold the same. What the exporter has
            left out is not there.
        places: Inputs and outputs of the module calls that could be followed.
        inputs: The tensors among the inputs, by their name in `model`.
        module: The model that was exported.
        arguments: Its arguments by place and keyword.
    """

    program: ExportedProgram
    model: ModelProto
    names: dict[str, str]
    places: dict[str, Places]
    inputs: dict[str, Tensor]
    module: nn.Module
    arguments: dict[str, Any]


def export_forward(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    translations: Mapping[Any, Callable[..., Any]] | None = None,
) -> Exported:
    """Export a model's forward for one set of inputs; shapes are fixed.

    Args:
        module: On the CPU, in any mode in which its forward draws no random numbers.
        args: Of its forward.
        kwargs: Keyword arguments of its forward.
        translations: Of operators that the exporter does not know, as its
            `custom_translation_table`; `accel.attention.onnx_translations()` of Accel's attention.

    Raises:
        BackendError: A package is missing, or the exporter has no translation for an operator.
        ValueError: The forward draws random numbers, a tensor is not on the CPU, or the model is
            larger than ONNX allows without external files (2 GiB).
    """
    check_present()
    given = dict(kwargs or {})
    _check(module, (args, given))
    try:
        with _quiet(), torch.no_grad():
            program, places = _program(module, tuple(args), given)
            _check_deterministic(program)
            converted = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                custom_translation_table=dict(translations or {}),
            )
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(
            f"{type(module).__name__} cannot be exported to ONNX ({_cause(error)})"
        ) from error
    if converted is None or converted.exported_program is None:
        raise BackendError(f"torch.onnx.export gave no program for {type(module).__name__}")
    model = converted.model_proto
    arguments = {**{str(i): value for i, value in enumerate(args)}, **given}
    return Exported(
        program=program,
        model=model,
        names=align(program, converted.exported_program, model),
        places=places,
        inputs=_inputs(program, model, (tuple(args), given)),
        module=module,
        arguments=arguments,
    )


def _cause(error: BaseException) -> str:
    """What the exporter's advice is wrapped around."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def _program(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, dict[str, Places]]:
    """The operators as the dispatcher would see them.

    Only what the dispatcher itself takes apart is taken apart (`linear` into `t` and `addmm`), so
    that the operators are those of a recording of torch.
    """
    kept = steady_modules(module, args, kwargs)
    whole = torch.export.export(
        module, args, kwargs, strict=False, preserve_module_call_signature=kept
    )
    table = torch.export.default_decompositions()
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    for operator in list(table):
        if not operator.has_kernel_for_dispatch_key(composite):
            table.pop(operator)
    places = take_places(whole)
    program: ExportedProgram = whole.run_decompositions(table)
    names = counterparts(whole.graph, program.graph)
    return program, {call: found.renamed(names) for call, found in places.items()}


def _check(module: nn.Module, given: Any) -> None:
    own = [*module.named_parameters(), *module.named_buffers()]
    leaves = torch.utils._pytree.tree_leaves(given)
    inputs = [("an input", leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    for name, tensor in (*own, *inputs):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is on {tensor.device}, and the forward is run by ONNX Runtime on the "
                "CPU: give a copy of the model and its inputs there"
            )
    size = sum(tensor.nbytes for _, tensor in own)
    if size > _LARGEST:
        raise ValueError(
            f"the model has {size / 2**30:.1f} GiB of weights and an ONNX program holds at most "
            "2 GiB: give a smaller configuration, or one block of it"
        )


def _check_deterministic(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded not in tags or not _draws(node):
            continue
        raise ValueError(
            f"the forward draws random numbers ({node.target}), which no two engines draw alike: "
            "call model.eval(), or set the dropout to 0"
        )


def _draws(node: torch.fx.Node) -> bool:
    """Whether an operator that may draw random numbers does."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    for argument in schema.arguments:
        if argument.name in ("p", "dropout_p", "dropout"):
            return bool(given.get(argument.name, argument.default_value) != 0)
    return True


def _inputs(program: ExportedProgram, model: ModelProto, given: Any) -> dict[str, Tensor]:
    names = program.graph_signature.user_inputs
    taken = {value.name for value in model.graph.input}
    leaves = torch.utils._pytree.tree_leaves(given)
    found = {}
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(name, str) and name in taken and isinstance(leaf, Tensor):
            found[name] = leaf.detach()
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: a deprecation, and that torchvision is missing."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        logger.setLevel(before)
