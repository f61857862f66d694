"""Other engines, the same program: nothing may be flagged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from accel.numerics import compare
from tests.numerics_zoo import Case, case, made, one_thread, recorded, threads  # noqa: F401

Variant = Callable[[], contextlib.AbstractContextManager[Any]]


def no_onednn() -> contextlib.AbstractContextManager[Any]:
    return torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None)


def unchanged() -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


VARIANTS: dict[str, Variant] = {
    "2 threads": lambda: threads(2),
    "no oneDNN": no_onednn,
    "math attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "channels last": unchanged,
}
# Where a variant computes other bits; elsewhere it would be the same run again.
PAIRS = [
    ("mlp", "no oneDNN"), ("cnn", "no oneDNN"), ("cnn", "channels last"), ("lstm", "no oneDNN"),
    ("shared", "no oneDNN"), ("encoder", "math attention"), ("autoencoder", "no oneDNN"),
    ("autoencoder", "channels last"), ("language", "2 threads"), ("language", "no oneDNN"),
    ("language", "math attention"),
]  # fmt: skip


def as_variant(name: str, variant: str) -> tuple[nn.Module, Case]:
    one = case(name)
    model = made(one.model)
    if variant == "channels last":
        model = model.to(memory_format=torch.channels_last)
        one = one._replace(inputs=one.inputs.to(memory_format=torch.channels_last))
    return model, one


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_benign_variants_are_not_flagged(tmp_path: Path, autocast: bool) -> None:
    flags, effective = [], 0
    references: set[str] = set()
    for number, (name, variant) in enumerate(PAIRS):
        if name not in references:
            recorded(tmp_path / name, case(name), autocast=autocast)
            references.add(name)
        model, one = as_variant(name, variant)
        path = tmp_path / str(number)
        with VARIANTS[variant]():
            recorded(path, one, model=model, autocast=autocast)
        found = compare(tmp_path / name, path)
        effective += found.count("within") > 0
        if not found.ok:
            flags.append(f"{name}, {variant}: {found.verdict}")
    assert len(references) >= 6
    assert effective >= 6  # or nothing was proved
    assert flags == []
