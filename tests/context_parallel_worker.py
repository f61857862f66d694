"""One of several processes that share a sequence.

    python context_parallel_worker.py DIRECTORY SCENARIO…

with RANK and WORLD_SIZE set. A scenario is the name of a case, whose results of this rank go to
DIRECTORY/CASE-RANK.pt, or of a function.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from accel.attention.context_parallel import api as context_parallel
from accel.attention.context_parallel import ring
from accel.attention.context_parallel.api import context_parallel_attention
from accel.attention.context_parallel.sharding import SequenceLayout, shard, unshard
from accel_kernels.masks import (
    Mask,
    Sizes,
    causal,
    documents,
    key_lengths,
    prefix,
    window,
)
from accel_kernels.segmented_attention.call import Bias, Call, Dropout, alibi, relative_bias
from tests.process_groups import process_group

Sequence4 = dict[str, Tensor]
SEED = 1234567


@dataclass(frozen=True)
class Case:
    """An attention, and how it is shared."""

    method: str = "ring"
    layout: Callable[[int, int], SequenceLayout] = SequenceLayout.zigzag
    key_layout: Callable[[int, int], SequenceLayout] | None = None
    length: int = 101
    key_length: int | None = None
    batch: int = 1
    heads: int = 4
    key_heads: int = 4
    size: int = 8
    value_size: int = 8
    dtype: torch.dtype = torch.float32
    mask: Callable[[], Mask] | None = None
    dense: tuple[int, int] | None = None  # batch and heads of a mask tensor
    bias: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> int:
        return self.length if self.key_length is None else self.key_length

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.batch, self.heads, self.length, self.keys)


def with_empty_rank(length: int, ranks: int) -> SequenceLayout:
    """The last but one rank holds nothing, the first one position."""
    lengths = [1, *[0] * (ranks - 2), length - 1] if ranks == 2 else [1, length - 9, 0, 8]
    return SequenceLayout.of_lengths(lengths)


def by_documents(length: int, ranks: int) -> SequenceLayout:
    return SequenceLayout.zigzag(length, ranks, documents=[0, 3, 40, 41, length])


CUTS = [0, 3, 40, 41, 77]
contiguous = SequenceLayout.contiguous
CAUSAL = {"is_causal": True}
SHARED: dict[str, Case] = {
    "full": Case(),
    "causal": Case(options=CAUSAL),
    "causal_contiguous": Case(layout=contiguous, options=CAUSAL),
    "no_tokens": Case(length=0, options=CAUSAL),
    "no_keys": Case(key_length=0),
    "causal_one_token": Case(length=1, batch=16, options=CAUSAL),
    "causal_fewer_tokens_than_ranks": Case(length=3, batch=16, options=CAUSAL),
    "causal_even": Case(length=64, options=CAUSAL),
    "causal_empty_rank": Case(layout=with_empty_rank, options=CAUSAL),
    "window": Case(mask=lambda: window(9, 0)),
    "window_contiguous": Case(layout=contiguous, mask=lambda: window(9, 4)),
    "sinks": Case(mask=lambda: window(5, 0, sinks=3)),
    "documents": Case(mask=lambda: documents(CUTS, within=causal())),
    "documents_layout": Case(layout=by_documents, mask=lambda: documents(CUTS) & causal()),
    "window_and_documents": Case(mask=lambda: documents(CUTS) & window(6, 0)),
    "prefix": Case(mask=lambda: causal() | prefix(30)),
    "key_lengths": Case(batch=2, mask=lambda: key_lengths([50, 101]) & causal()),
    "tensor_lengths": Case(batch=2, mask=lambda: key_lengths(torch.tensor([50, 0]))),
    "dense": Case(batch=2, dense=(2, 4)),
    "dense_by_batch_causal": Case(batch=2, dense=(2, 1), options=CAUSAL),
    "top_left": Case(key_length=77, mask=lambda: causal("top_left")),
    "fewer_keys": Case(key_length=60, options=CAUSAL),
    "more_keys": Case(length=60, key_length=101, key_layout=contiguous, options=CAUSAL),
    "sees_nothing": Case(mask=lambda: documents([0, 40]) & causal()),
    "grouped": Case(key_heads=2, options=CAUSAL),
    "one_key_head": Case(key_heads=1, options=CAUSAL),
    "value_size": Case(value_size=5, options=CAUSAL),
    "batch": Case(batch=3, options=CAUSAL),
    "scale_and_cap": Case(options={**CAUSAL, "scale": 0.7, "softcap": 2.0}),
    "negative_scale": Case(options={**CAUSAL, "scale": -0.3}),
    "dropout": Case(batch=2, options={**CAUSAL, "dropout_p": 0.25, "dropout_seed": SEED}),
    "dropout_window": Case(mask=lambda: window(30, 30),
                           options={"dropout_p": 0.1, "dropout_seed": -SEED}),
    "alibi": Case(heads=16, bias="alibi", options=CAUSAL),
    "alibi_by_batch": Case(batch=4, bias="alibi_by_batch", key_length=77, options=CAUSAL),
    "relative": Case(bias="relative", options=CAUSAL),
    "dense_bias": Case(batch=2, bias="dense", options=CAUSAL),
    "row_bias": Case(bias="row", options=CAUSAL),
    "lse": Case(options={**CAUSAL, "return_lse": True}),
    "lse_of_nothing": Case(mask=lambda: documents([0, 40]) & causal(),
                           options={"return_lse": True}),
    "segments": Case(options={**CAUSAL, "segment_size": 7}),
    "unchecked": Case(options={**CAUSAL, "checked": False}),
    "float64": Case(dtype=torch.float64, options=CAUSAL),
    "bfloat16": Case(dtype=torch.bfloat16, length=129, options=CAUSAL),
    "bfloat16_full": Case(dtype=torch.bfloat16, length=129),
    "float16": Case(dtype=torch.float16, options=CAUSAL),
}  # fmt: skip
OF_METHODS = (
    "full", "causal", "causal_contiguous", "causal_empty_rank", "causal_fewer_tokens_than_ranks",
    "window_and_documents", "tensor_lengths", "dense", "more_keys", "grouped", "one_key_head",
    "value_size", "dropout", "alibi", "relative", "dense_bias", "lse", "bfloat16",
)  # fmt: skip


# Of these the four ranks of a ring make more than two do.
OF_FOUR = (
    "full", "causal", "causal_contiguous", "causal_fewer_tokens_than_ranks", "causal_empty_rank",
    "window", "window_contiguous", "documents_layout", "window_and_documents", "key_lengths",
    "sees_nothing", "fewer_keys", "more_keys", "grouped", "dropout", "dropout_window", "alibi",
    "lse", "unchecked", "float64", "bfloat16_full",
)  # fmt: skip


def _of_method(method: str, names: Iterable[str]) -> dict[str, Case]:
    fields = {name: {**vars(SHARED[name]), "method": method} for name in names}
    return {f"{method}:{name}": Case(**given) for name, given in fields.items()}


CASES = {
    2: {**_of_method("ring", SHARED), **_of_method("ulysses", OF_METHODS)},
    4: {
        **_of_method("ring", OF_FOUR),
        **_of_method("ulysses", ("causal", "causal_empty_rank", "one_key_head", "lse")),
        **_of_method("ring+ulysses", OF_METHODS),
    },
}
ON_ASCEND = (
    "ring:causal", "ring:window_and_documents", "ring:causal_empty_rank", "ring:dropout",
    "ring:bfloat16", "ulysses:causal", "ulysses:one_key_head", "ulysses:lse",
)  # fmt: skip


def inputs(case: Case) -> Sequence4:
    """Query, key, value, bias and mask tensors, and the gradients of output and log-sum-exp."""
    generator = torch.Generator().manual_seed(len(str(case)))
    draw = functools.partial(torch.randn, generator=generator)
    heads, keys = case.heads, case.keys
    found = {
        "query": draw(case.batch, heads, case.length, case.size),
        "key": draw(case.batch, case.key_heads, keys, case.size),
        "value": draw(case.batch, case.key_heads, keys, case.value_size),
        "grad_out": draw(case.batch, heads, case.length, case.value_size),
    }
    shapes = {
        "alibi": (heads,), "alibi_by_batch": (case.batch, heads), "relative": (heads, 11),
        "dense": (case.batch, heads, case.length, keys), "row": (1, 1, 1, keys),
    }  # fmt: skip
    if case.bias is not None:
        found["bias"] = draw(*shapes[case.bias]) * 0.3
        if case.bias.startswith("alibi"):  # slopes are positive: the nearest key weighs most
            found["bias"].abs_()
    found = {name: tensor.to(case.dtype) for name, tensor in found.items()}
    found["grad_lse"] = draw(case.batch, heads, case.length).to(
        torch.float64 if case.dtype == torch.float64 else torch.float32
    )
    if case.dense is not None:
        shape = (*case.dense, case.length, keys)
        found["dense"] = torch.rand(shape, generator=generator) < 0.3
    return found


def bias_of(case: Case, tensor: Tensor | None) -> Bias | Tensor | None:
    if tensor is None or case.bias is None:
        return None
    if case.bias.startswith("alibi"):
        return alibi(tensor)
    return relative_bias(tensor) if case.bias == "relative" else tensor


def call_of(case: Case, given: Sequence4) -> Call:
    """The same as a call in one process."""
    from accel_kernels.segmented_attention import arguments

    options = case.options
    mask = given.get("dense") if case.mask is None else case.mask()
    dropout = None
    if "dropout_p" in options:
        dropout = Dropout(options["dropout_p"], options["dropout_seed"])
    return Call(
        arguments.mask_of(mask, options.get("is_causal", False)),
        options.get("scale", case.size**-0.5),
        options.get("softcap"),
        arguments.bias_of(bias_of(case, given.get("bias"))),
        dropout,
        options.get("segment_size"),
        True,
    )


def layouts(case: Case, ranks: int) -> tuple[SequenceLayout, SequenceLayout]:
    make = case.layout if case.key_layout is None else case.key_layout
    return case.layout(case.length, ranks), make(case.keys, ranks)


# --- in a worker ----------------------------------------------------------------------------------


@functools.cache
def mesh_of(method: str) -> Any:
    kind = device().type
    if method != "ring+ulysses":
        return init_device_mesh(kind, (distributed.get_world_size(),), mesh_dim_names=(method,))
    return init_device_mesh(kind, (2, 2), mesh_dim_names=("ring", "ulysses"))


def device() -> torch.device:
    kind = os.environ.get("ACCEL_TEST_DEVICE", "cpu")
    index = None if kind == "cpu" else int(os.environ["LOCAL_RANK"])
    return torch.device(kind, index) if index is not None else torch.device(kind)


def attend(case: Case, given: Sequence4, **changes: Any) -> dict[str, Tensor]:
    """This rank's results and gradients."""
    layout, key_layout = layouts(case, distributed.get_world_size())
    mesh = mesh_of(case.method)
    given = {name: tensor.to(device()) for name, tensor in given.items()}
    cut = {
        name: shard(given[name], key_layout if name in ("key", "value") else layout, mesh)
        for name in ("query", "key", "value", "grad_out", "grad_lse")
    }
    leaves = {name: cut[name].requires_grad_() for name in ("query", "key", "value")}
    if "bias" in given:
        leaves["bias"] = given["bias"].requires_grad_()
    options = {"mask": given.get("dense") if case.mask is None else case.mask(),
               "bias": bias_of(case, leaves.get("bias")), **case.options, **changes}  # fmt: skip
    if case.key_length is not None or case.key_layout is not None:
        options["key_layout"] = key_layout
    method: Any = case.method
    with torch.set_grad_enabled(not options.pop("no_grad", False)):
        found = context_parallel_attention(
            leaves["query"], leaves["key"], leaves["value"],
            layout=layout, mesh=mesh, method=method, **options,
        )  # fmt: skip
    results = {"out": found}
    outputs, grads = [found], [cut["grad_out"]]
    if options.get("return_lse"):
        results = {"out": found.out, "lse": found.lse}
        # A row that sees nothing has no log-sum-exp whose gradient could be asked for.
        outputs, grads = [*found], [cut["grad_out"], cut["grad_lse"]]
    taken = torch.autograd.grad(outputs, list(leaves.values()), grads)
    results.update((f"grad_{name}", grad) for name, grad in zip(leaves, taken, strict=True))
    return {name: tensor.detach().cpu() for name, tensor in results.items()}


def run(out: Path, name: str) -> None:
    case = CASES[distributed.get_world_size()][name]
    torch.save(attend(case, inputs(case)), out / f"{name}-{distributed.get_rank()}.pt")


def answer(out: Path, name: str, text: str) -> None:
    (out / f"{name}-{distributed.get_rank()}.txt").write_text(text)


def repeated(out: Path, name: str) -> None:
    """The same bits twice, and through a group in place of a mesh."""
    case = CASES[distributed.get_world_size()]["ring:window_and_documents"]
    once = attend(case, inputs(case))
    again = attend(case, inputs(case))
    different = [key for key in once if not torch.equal(once[key], again[key])]
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    query, key, value = (shard(given[n], layout) for n in ("query", "key", "value"))
    by_group = context_parallel_attention(query, key, value, layout=layout, mask=case.mask())
    if not torch.equal(by_group, once["out"]):
        different.append("by group")
    answer(out, name, repr(different))


def drawn(out: Path, name: str) -> None:
    """Without a seed, all ranks use the first one's; each has a generator of its own."""
    rank = distributed.get_rank()
    case = Case(options={"dropout_p": 0.5})
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    query, key, value = (shard(given[n], layout) for n in ("query", "key", "value"))
    for seed in (100, 200):
        torch.manual_seed(seed + rank)
        part = context_parallel_attention(query, key, value, layout=layout, dropout_p=0.5)
        torch.save(unshard(part, layout), out / f"{name}-{seed}-{rank}.pt")


def control(out: Path, name: str) -> None:
    """Merges that are known to be wrong, in place of the right one."""
    case = CASES[distributed.get_world_size()]["ring:causal"]
    right = ring.merge

    def mean(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Any:
        first = (lse_a == -torch.inf).unsqueeze(-1)
        return torch.where(first, out_b, (out_a + out_b) / 2), torch.logaddexp(lse_a, lse_b)

    ring.merge = mean
    try:
        torch.save(attend(case, inputs(case)), out / f"{name}-{distributed.get_rank()}.pt")
    finally:
        ring.merge = right


def second_derivative(out: Path, name: str) -> None:
    """Ulysses has one; a ring says that it has none."""
    case = Case(method="ulysses", options=CAUSAL)
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    for method in ("ulysses", "ring"):
        query, key, value = (
            shard(given[n], layout).requires_grad_() for n in ("query", "key", "value")
        )
        result = context_parallel_attention(
            query, key, value, layout=layout, is_causal=True, method=method, backend="reference"
        )
        grads = torch.autograd.grad(
            result, (query, key, value), shard(given["grad_out"], layout), create_graph=True
        )
        try:
            loss = torch.stack([g.square().sum() for g in grads]).sum()
            second = torch.autograd.grad(loss, (query, key, value))
        except RuntimeError as error:
            answer(out, name, f"{method}: {error}")
        else:
            found = dict(zip(("query", "key", "value"), second, strict=True))
            torch.save(found, out / f"{name}-{method}-{distributed.get_rank()}.pt")


def checkpointed(out: Path, name: str) -> None:
    """Recomputed in the backward, with the dropout of the forward."""
    from torch.utils.checkpoint import checkpoint

    case = Case(options={**CAUSAL, "dropout_p": 0.5})
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    cut = [shard(given[n], layout).requires_grad_() for n in ("query", "key", "value")]
    grad = shard(given["grad_out"], layout)

    def block(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return context_parallel_attention(
            query, key, value, layout=layout, is_causal=True, dropout_p=0.5
        )

    found = []
    for is_kept in (True, False):
        torch.manual_seed(7)
        result = block(*cut) if is_kept else checkpoint(block, *cut, use_reentrant=False)
        found.append((result.detach(), *torch.autograd.grad(result, cut, grad)))
    answer(out, name, str(all(torch.equal(a, b) for a, b in zip(*found, strict=True))))


METHODS = ("ring", "ulysses", "ring+ulysses")
POISONED = Case(mask=lambda: key_lengths([60]) & window(20, 5))


def poisoned(out: Path, name: str) -> None:
    """What nobody sees reaches nobody, wherever it is held."""
    for method in METHODS[:2]:
        case = Case(method, mask=POISONED.mask)
        given = inputs(POISONED)
        for filling in (torch.nan, torch.inf):
            for one in ("key", "value"):
                given[one][:, :, 60:] = filling
            file = f"{name}-{method}-{filling}-{distributed.get_rank()}.pt"
            torch.save(attend(case, given), out / file)


def other_groups(out: Path, name: str) -> None:
    """Each half of the processes by itself, and a mesh whose dimensions are named the other way."""
    size, rank = distributed.get_world_size(), distributed.get_rank()
    halves = [list(range(size))[start::2] for start in (0, 1)]
    groups = [distributed.new_group(half) for half in halves]
    case = CASES[size]["ring:window_and_documents"]
    given = inputs(case)
    half = rank % 2
    layout, _ = layouts(case, len(halves[half]))
    cut = [shard(given[n], layout, groups[half]) for n in ("query", "key", "value")]
    for method in ("ring", "ulysses"):
        part = context_parallel_attention(
            *cut, layout=layout, mesh=groups[half], method=method, mask=case.mask()
        )
        whole = unshard(part, layout, groups[half])
        torch.save(whole, out / f"{name}-{method}-{rank}.pt")
    try:
        shard(given["query"], layout, groups[1 - half])
    except ValueError as error:
        answer(out, name, str(error))
    if size == 4:
        named = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ulysses", "ring"))
        layout, _ = layouts(case, 4)
        cut = [shard(given[n], layout, named) for n in ("query", "key", "value")]
        part = context_parallel_attention(*cut, layout=layout, mesh=named, mask=case.mask())
        torch.save(unshard(part, layout, named), out / f"{name}-named-{rank}.pt")


def autocast(out: Path, name: str) -> None:
    case = CASES[distributed.get_world_size()]["ring:causal"]
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    cut = [shard(given[n], layout).requires_grad_() for n in ("query", "key", "value")]
    with torch.autocast("cpu", torch.bfloat16):
        result = context_parallel_attention(*cut, layout=layout, is_causal=True)
    result.float().sum().backward()
    narrow = [tensor.detach().bfloat16() for tensor in cut]
    expected = context_parallel_attention(*narrow, layout=layout, is_causal=True)
    answer(out, name, f"{torch.equal(result, expected)} {result.dtype} {cut[0].grad.dtype}")


def remembered(out: Path, name: str) -> None:
    """Layers with the same mask find out once which pieces see which."""
    case = CASES[distributed.get_world_size()]["ring:causal"]
    before = len(context_parallel._remembered)
    for _ in range(2):
        attend(case, inputs(case))
    answer(out, name, str(len(context_parallel._remembered) - before <= 1))


# --- what goes wrong ------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Case, dict[str, Any]]] = {
    # What is called everywhere, and what rank 1 changes of it.
    "mistake:dtype": (Case(), {"dtype": torch.float64}),
    "mistake:batch": (Case(), {"batch": 2}),
    "mistake:heads": (Case(), {"heads": 8, "key_heads": 8}),
    "mistake:layout": (Case(), {"layout": contiguous}),
    "mistake:length": (Case(), {"length": 100}),
    "mistake:mask": (Case(mask=causal), {"mask": lambda: window(3, 0)}),
    "mistake:mask_tensor": (
        Case(batch=2, mask=lambda: key_lengths(torch.tensor([50, 0]))),
        {"mask": lambda: key_lengths(torch.tensor([50, 1]))},
    ),
    "mistake:causal": (Case(options=CAUSAL), {"options": {}}),
    "mistake:scale": (Case(), {"options": {"scale": 0.5}}),
    "mistake:seed": (
        Case(options={"dropout_p": 0.5, "dropout_seed": 1}),
        {"options": {"dropout_p": 0.5, "dropout_seed": 2}},
    ),
    "mistake:requires_grad": (Case(), {"options": {"no_grad": True}}),
    "mistake:own": (Case(), {"options": {"softcap": -1.0}}),
    "mistake:own_type": (Case(), {"options": {"mask": "causal"}}),
    "mistake:own_backend": (Case(), {"options": {"backend": "sdpa"}}),
    "mistake:backend": (Case(), {"options": {"backend": "nonsense"}}),
}


def mistake(out: Path, name: str) -> None:
    """One rank is called otherwise: every rank says so, and the group still works."""
    case, change = MISTAKES[name]
    if distributed.get_rank() == 1:
        case = Case(**{**vars(case), **change})
    try:
        attend(case, inputs(case))
    except Exception as error:
        answer(out, name, f"{type(error).__name__}: {error}")
    else:
        answer(out, name, "nothing was raised")


def everyones(out: Path, name: str) -> None:
    """Mistakes that every rank makes alike."""
    ranks = distributed.get_world_size()
    tensor = torch.zeros(1, 3, 5, 4)
    layout = SequenceLayout.of_lengths([5] * ranks)
    calls: dict[str, Callable[[], Any]] = {
        "heads": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, method="ulysses"),
        "ranks": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=SequenceLayout.contiguous(5, 1)),
        "local": lambda: context_parallel_attention(
            tensor[:, :, :4], tensor, tensor, layout=layout),
        "key heads": lambda: context_parallel_attention(
            tensor.repeat(1, 4, 1, 1), tensor, tensor, layout=layout, method="ulysses"),
        "bias": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, bias=torch.ones(5, 5)),
        "mask": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, mask=torch.ones(5, 5, dtype=torch.bool)),
        "method": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, method="rings"),
        "mesh": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, method="ring+ulysses"),
        "mesh type": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, mesh="cp"),
        "layout type": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=[5] * ranks),
        "seed": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, dropout_p=0.5, checked=False),
        "shard": lambda: shard(tensor, layout),
        "unshard": lambda: unshard(tensor[:, :, :4], layout),
        "sdpa": lambda: context_parallel_attention(
            tensor, tensor, tensor, layout=layout, backend="sdpa"),
    }  # fmt: skip
    lines = []
    for what, call in calls.items():
        try:
            call()
        except Exception as error:
            lines.append(f"{what}: {type(error).__name__}: {error}")
        else:
            lines.append(f"{what}: nothing was raised")
    answer(out, name, "\n".join(lines))


def killed(out: Path, name: str) -> None:
    """Rank 1 is gone before the backward, which rank 0 then cannot finish."""
    case = CASES[distributed.get_world_size()]["ring:causal"]
    given = inputs(case)
    layout, _ = layouts(case, distributed.get_world_size())
    query, key, value = (
        shard(given[n], layout).requires_grad_() for n in ("query", "key", "value")
    )
    result = context_parallel_attention(query, key, value, layout=layout, is_causal=True)
    distributed.barrier()
    if distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    result.sum().backward()


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    if device().type != "cpu":
        torch.get_device_module(device()).set_device(device())
    backend = os.environ.get("ACCEL_TEST_BACKEND", "gloo")
    with process_group(Path(out) / "store", backend):
        for name in names:
            if name in MISTAKES:
                mistake(Path(out), name)
            elif ":" in name:
                run(Path(out), name)
            else:
                globals()[name](Path(out), name)
            distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
