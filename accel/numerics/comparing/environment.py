"""Where two runs were made: versions, chip, switches; and which switches could explain what."""

from __future__ import annotations

from collections.abc import Mapping

from accel.numerics.storage.manifest import Manifest

# What is allowed to differ without being an environment: facts about the recording itself.
_OF_THE_RECORDING = frozenset(
    {"schema", "level", "only", "steps", "rank", "complete", "error"}
)  # fmt: skip
# Parts of switches' names, and parts of the names of operators that they can change.
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mv", "matmul", "dot", "einsum")
_CONVOLUTIONS = ("conv",)
_ATTENTION = ("attention", "sdp", "flash")
_AFFECTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("conv", _CONVOLUTIONS),
    ("cudnn_allow_tf32", _CONVOLUTIONS),
    ("rnn", ("rnn", "lstm", "gru")),
    ("sdp", _ATTENTION),
    ("attention", _ATTENTION),
    ("flash", _ATTENTION),
    ("compatible_impl", ("gelu",)),
    ("matmul", _PRODUCTS),
    ("reduced_precision_reduction", _PRODUCTS),
    ("split_k", _PRODUCTS),
    ("accumulation", _PRODUCTS),
    ("mkldnn_allow_tf32", (*_PRODUCTS, *_CONVOLUTIONS)),
    ("cube_math", (*_PRODUCTS, *_CONVOLUTIONS)),
    ("precision_mode", (*_PRODUCTS, *_CONVOLUTIONS)),
    ("TF32", (*_PRODUCTS, *_CONVOLUTIONS)),
)
# Switches that let float32 be computed in less: only they can explain more than rounding.
_NARROWING = ("fp32", "float32", "tf32", "TF32", "hf32", "cube_math", "precision_mode")


def differences(a: Manifest, b: Manifest) -> dict[str, tuple[str, str]]:
    """What differs between two manifests, by dotted names: (reference, candidate) as texts."""
    both = dict(a.to_dict()), dict(b.to_dict())
    if bool(a.numerics_mode) != bool(b.numerics_mode):  # a framework whose switches are not known
        for fields in both:
            known = len(fields["numerics_mode"])
            fields["numerics_mode"] = f"{known} switches" if known else "unknown"
    left, right = dict(_flat("", both[0])), dict(_flat("", both[1]))
    names = [*left, *(name for name in right if name not in left)]
    return {
        name: (left.get(name, "(not there)"), right.get(name, "(not there)"))
        for name in names
        if left.get(name) != right.get(name)
        and not {name.split(".", 1)[0], name} & _OF_THE_RECORDING
    }


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        inside = ((f"{prefix}.{name}" if prefix else str(name), v) for name, v in value.items())
        return [pair for name, item in inside for pair in _flat(name, item)]
    if isinstance(value, (list, tuple)):
        return [(prefix, " ".join(map(str, value)))]
    return [(prefix, str(value))]


def switches(changed: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Those of `differences` that are numeric switches, without the dotted prefix."""
    prefix = "numerics_mode."
    return {n.removeprefix(prefix): pair for n, pair in changed.items() if n.startswith(prefix)}


def explaining(changed: Mapping[str, tuple[str, str]], op: str) -> dict[str, tuple[str, str]]:
    """The switches that differ and can narrow the precision of an operator.

    Args:
        changed: From `differences`.
        op: An operator's name.
    """
    return {
        name: pair
        for name, pair in switches(changed).items()
        if any(part in name for part in _NARROWING) and _can_change(name, op)
    }


def _can_change(switch: str, op: str) -> bool:
    return any(part in switch and any(of in op for of in operators) for part, operators in _AFFECTS)
