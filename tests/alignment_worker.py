"""One of several processes that share a batch: python alignment_worker.py DIRECTORY SCENARIO…

What a scenario's function returns on this rank goes to DIRECTORY/SCENARIO-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from accel.alignment import Aligner
from accel.alignment.caching.aligner import CachedAligner, cached
from accel.alignment.loss import contrastive_loss
from accel.alignment.ranks import ring
from accel.alignment.ranks.agreement import refuse
from accel.alignment.ranks.global_batch import (
    first_sample,
    global_sigmoid_sum,
    global_softmax_sums,
    sum_over_ranks,
)
from accel.distributed import Shift
from accel_kernels.contrastive_loss import SPECS
from accel_kernels.contrastive_loss.pairing import Guide, Pairing
from accel_kernels.contrastive_loss.passes import Passes
from tests.process_groups import process_group

FORMS = ("all_gather", "ring")
SIZE = 7


@dataclass(frozen=True)
class Case:
    """A batch and how it is shared: rows and columns of each of four ranks."""

    rows: tuple[int, ...] = (3, 3, 3, 3)
    columns: tuple[int, ...] | None = None
    pairing: str = "plain"
    dtype: torch.dtype = torch.float64
    hardness: float = 0.0
    scale: float = 6.0

    def counts(self, ranks: int) -> tuple[list[int], list[int]]:
        """Rows and columns of each rank."""
        columns = self.rows if self.columns is None else self.columns
        return list(self.rows[:ranks]), list(columns[:ranks])


CASES = {
    "even": Case(),
    "uneven": Case((5, 1, 4, 2)),
    "empty_rank": Case((4, 0, 3, 2)),
    "first_rank_empty": Case((0, 4, 3, 2)),
    "nobody": Case((0, 0, 0, 0)),
    "one_sample": Case((0, 1, 0, 0)),
    "lacks_the_pair": Case((5, 4, 3, 2), pairing="absent_on_rank_1"),
    "some_absent": Case((5, 4, 3, 2), pairing="some_absent"),
    "more_columns": Case((2, 3, 0, 2), (4, 0, 5, 3), "elsewhere"),
    "partners_elsewhere": Case((4, 2, 3, 3), pairing="elsewhere"),
    "repeated": Case((4, 2, 3, 3), pairing="repeated"),
    "groups_positive": Case((4, 2, 3, 3), pairing="groups_positive"),
    "groups_ignore": Case((4, 2, 3, 3), pairing="groups_ignore"),
    "groups_negative": Case((4, 2, 3, 3), pairing="groups_negative"),
    "guide": Case((4, 2, 0, 3), pairing="guide"),
    "guide_and_groups": Case((4, 2, 3, 3), pairing="guide_groups", hardness=0.7),
    "hardness": Case((4, 2, 3, 3), hardness=1.5),
    "large_scale": Case((4, 2, 3, 3), scale=100.0),
    "float32": Case((70, 33, 5, 64), dtype=torch.float32, scale=50.0),
    "float32_guide": Case((70, 33, 5, 64), pairing="guide", dtype=torch.float32),
    "float32_groups": Case((70, 0, 5, 64), pairing="groups_positive", dtype=torch.float32),
    "bfloat16": Case((70, 33, 5, 64), dtype=torch.bfloat16),
}  # fmt: skip

LOSSES = ("uneven", "lacks_the_pair", "nobody", "partners_elsewhere", "groups_positive",
          "guide_and_groups", "float32")  # fmt: skip
KINDS = (("softmax", "both"), ("softmax", "x_to_y"), ("softmax", "y_to_x"), ("sigmoid", "both"))


def rank() -> int:
    return distributed.get_rank()


def ranks() -> int:
    return distributed.get_world_size()


def device() -> torch.device:
    """Of this rank."""
    kind = os.environ.get("ACCEL_TEST_DEVICE", "cpu")
    return torch.device(kind if kind == "cpu" else f"{kind}:{os.environ['LOCAL_RANK']}")


def passes_of(case: Case) -> Passes:
    name = "reference" if case.dtype == torch.float64 else device().type
    return next(spec for spec in SPECS if spec.name == name).load()


@dataclass
class Batch:
    """The whole batch, the same on every rank."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor
    references: tuple[Tensor, Tensor]
    pairing: Pairing
    upstream: list[Tensor]  # for x_lse, y_lse, x_positive, y_positive, and the sigmoid's sum

    def part(self, one: int, case: Case, count: int) -> Batch:
        """What a rank has of it."""
        rows, columns = case.counts(count)
        r = slice(sum(rows[:one]), sum(rows[: one + 1]))
        c = slice(sum(columns[:one]), sum(columns[: one + 1]))
        pairing, guide = self.pairing, self.pairing.guide
        mine = pairing._replace(
            x_sample=pairing.x_sample[r],
            y_sample=pairing.y_sample[c],
            x_group=None if pairing.x_group is None else pairing.x_group[r],
            y_group=None if pairing.y_group is None else pairing.y_group[c],
            guide=None if guide is None else Guide(
                guide.x[r], guide.y[c], guide.x_threshold[r], guide.y_threshold[c]
            ),
        )  # fmt: skip
        a, b, d, e, total = self.upstream
        return Batch(
            self.x[r].clone(), self.y[c].clone(), self.scale.clone(), self.bias.clone(),
            (self.references[0][r], self.references[1][c]), mine,
            [a[r], b[c], d[r], e[c], total[one]],
        )  # fmt: skip


def batch_of(case: Case, count: int, name: str) -> Batch:
    """Random numbers that depend on nothing but the case."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, columns = (sum(part) for part in case.counts(count))
    x, y = (nn.functional.normalize(random(n, SIZE), dim=1) for n in (rows, columns))
    if rows == columns:
        y = nn.functional.normalize(x + y, dim=1)
    x, y = x.to(case.dtype), y.to(case.dtype)
    pairing = pairing_of(case, rows, columns, count, random)
    upstream = [random(n).to(wide) for n in (rows, columns, rows, columns, count)]
    references = tuple((case.scale * random(n)).to(wide) for n in (rows, columns))
    if case.dtype != torch.float64:  # as a loss gives them: no result depends on them else
        references = (case.scale * (x.to(wide) * y.to(wide)).sum(1),) * 2
    scale, bias = (torch.tensor(v, dtype=wide) for v in (case.scale, -3.0))
    return Batch(x, y, scale, bias, references, pairing, upstream)


def pairing_of(
    case: Case, rows: int, columns: int, count: int, random: Callable[..., Tensor]
) -> Pairing:
    """By name; every sample number is one of the whole batch."""
    kind, (per_rank, _) = case.pairing, case.counts(count)
    x, y = torch.arange(rows), torch.arange(columns)
    if kind == "absent_on_rank_1":
        x[per_rank[0] : sum(per_rank[:2])] = -1
        y = x.clone()
    if kind == "some_absent":
        x[::3], y[1::3] = -1, -1
    if kind == "elsewhere":
        y = y.flip(0)
    if kind == "repeated":
        x, y = x % 3, (y + 1) % 3
    found = Pairing(x, y, hardness=case.hardness)
    if "groups" in kind:
        x_group, y_group = x % 3 - 1, y % 3 - 1
        treatment = kind.removeprefix("groups_") if kind.startswith("groups") else "ignore"
        found = found._replace(x_group=x_group, y_group=y_group, duplicates=treatment)
    if "guide" in kind:
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        guides = [
            nn.functional.normalize(random(n, 4), dim=1).to(case.dtype) for n in (rows, columns)
        ]
        thresholds = [(0.3 * random(n)).to(wide) for n in (rows, columns)]
        found = found._replace(guide=Guide(*guides, *thresholds))
    return found


def leaves(part: Batch) -> list[Tensor]:
    return [one.requires_grad_() for one in (part.x, part.y, part.scale, part.bias)]


def moved(item: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device()) if isinstance(leaf, Tensor) else leaf, item)


def sums(names: Iterable[str] = tuple(CASES)) -> Any:
    """Every case in both forms: the sums, and gradients by other upstream ones on each rank."""
    found: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        for form in FORMS:
            part = batch_of(case, ranks(), name).part(rank(), case, ranks())
            part = Batch(*(moved(getattr(part, one.name)) for one in fields(part)))
            x, y, scale, bias = leaves(part)
            a, b, c, d, total = part.upstream
            sums = global_softmax_sums(
                passes_of(case), x, y, scale, *part.references, part.pairing, form
            )
            here = [torch.isfinite(lse) for lse in (sums.x_lse, sums.y_lse)]
            objective = (
                (sums.x_lse * a)[here[0]].sum() + (sums.y_lse * b)[here[1]].sum()
                + (sums.x_positive * c).sum() + (sums.y_positive * d).sum()
            )  # fmt: skip
            softmax = torch.autograd.grad(objective, [x, y, scale])
            one = global_sigmoid_sum(passes_of(case), x, y, scale, bias, part.pairing, form)
            sigmoid = torch.autograd.grad(one * total, [x, y, scale, bias])
            found[f"{name} {form}"] = {
                "sums": [one.detach() for one in sums], "softmax": softmax,
                "sigmoid sum": one.detach(), "sigmoid": sigmoid,
            }  # fmt: skip
    return found


def in_float32() -> Any:
    """What a chip without float64 can do too."""
    return sums([name for name, case in CASES.items() if case.dtype == torch.float32])


def losses() -> Any:
    """The loss itself in every option: value, and gradients."""
    found: dict[str, Any] = {}
    for name in LOSSES:
        for form in FORMS:
            for kind, direction in KINDS:
                part = batch_of(CASES[name], ranks(), name).part(rank(), CASES[name], ranks())
                given = leaves(part)
                x, y, scale, bias = given
                options = {"bias": bias} if kind == "sigmoid" else {"direction": direction}
                loss = contrastive_loss(
                    x, y, scale=scale, kind=kind, pairing=part.pairing, form=form, **options
                )
                wanted = given if kind == "sigmoid" else given[:3]
                gradients = torch.autograd.grad(loss, wanted)
                found[f"{name} {form} {kind} {direction}"] = loss.detach(), gradients
    return found


def own_pairs() -> Any:
    """Without a pairing a rank's row i belongs to its row i; rows of others are negatives."""
    case = CASES["uneven"]
    part = batch_of(case, ranks(), "uneven").part(rank(), case, ranks())
    given = part.x, part.y, part.scale, *part.references
    sums = [global_softmax_sums(passes_of(case), *given, None, form) for form in FORMS]
    return first_sample(len(part.x)), *[list(one) for one in sums]


def same_bits() -> Any:
    """float32 addends whose sum depends on their order."""
    value = torch.tensor([1.0, 2.0**-24, 2.0**-24, -1.0])[rank()].requires_grad_()
    total = sum_over_ranks(value)
    (gradient,) = torch.autograd.grad(total, value)
    return total.detach(), gradient


def only_some_need_gradients() -> Any:
    """Where one rank's backward sends, the others must receive: nothing hangs, nothing is lost."""
    found = {}
    case = CASES["even"]
    for form in FORMS:
        part = batch_of(case, ranks(), "even").part(rank(), case, ranks())
        if rank() == 0:
            part.x.requires_grad_()
        passes = passes_of(case)
        sums = global_softmax_sums(
            passes, part.x, part.y, part.scale, *part.references, part.pairing, form
        )
        sums.x_lse.sum().backward()
        found[form] = part.x.grad
    return found


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return result


def memory() -> Any:
    """Bytes saved for the backward, and the largest tensor, of a rank that always has as much."""
    found = {}
    generator = torch.Generator().manual_seed(rank())
    x, y = (torch.randn(700, 4, generator=generator, requires_grad=True) for _ in range(2))
    scale, bias, reference = torch.tensor(5.0), torch.tensor(-3.0), torch.zeros(700)
    scale.requires_grad_()
    passes = passes_of(CASES["float32"])
    for form in FORMS:
        for kind in ("softmax", "sigmoid"):
            saved: dict[int, int] = {}

            def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            with Largest() as largest:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    if kind == "softmax":
                        sums = global_softmax_sums(
                            passes, x, y, scale, reference, reference, None, form
                        )
                        total = sums.x_lse.sum() + sums.y_lse.sum()
                    else:
                        total = global_sigmoid_sum(passes, x, y, scale, bias, None, form)
                torch.autograd.grad(total, [x, y, scale])
            found[f"{form} {kind}"] = sum(saved.values()), largest.numel
    return found


def overlap() -> Any:
    """What a ring does, in its order."""
    case, events = CASES["even"], []
    passes = passes_of(case)

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            events.append(name)
            return call(*args, **kwargs)

        return noting

    part = batch_of(case, ranks(), "even").part(rank(), case, ranks())
    before, ring.start_shift = ring.start_shift, noted("send", ring.start_shift)
    waiting, Shift.wait = Shift.wait, noted("wait", Shift.wait)
    try:
        watched = passes._replace(softmax=noted("compute", passes.softmax))
        global_softmax_sums(
            watched, part.x, part.y, part.scale, *part.references, part.pairing, "ring"
        )
    finally:
        ring.start_shift, Shift.wait = before, waiting
    return events


def refusals() -> Any:
    """What rank 1 does otherwise is an error on every rank."""
    x, odd = torch.zeros(2, 4), rank() == 1
    pairing = Pairing(torch.arange(2), torch.arange(2))
    passes = passes_of(CASES["float32"])

    def softmax(
        x: Tensor, y: Tensor, form: str = "ring", pairing: Any = None, learned: bool = False,
        direction: str = "both",
    ) -> Any:  # fmt: skip
        zeros = torch.zeros(len(x)), torch.zeros(len(y))
        scale = torch.tensor(1.0, requires_grad=learned)
        return global_softmax_sums(passes, x, y, scale, *zeros, pairing, form, direction=direction)

    def sigmoid(x: Tensor, learned: bool = False) -> Any:
        bias = torch.tensor(0.0, requires_grad=learned)
        return global_sigmoid_sum(passes, x, x, torch.tensor(1.0), bias, None, "ring")

    def without_gradients() -> Any:
        with torch.set_grad_enabled(not odd):
            return sigmoid(x)

    def second_derivative() -> Any:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(sigmoid(leaf), leaf, create_graph=True)

    half = x.bfloat16()
    guided = pairing._replace(guide=Guide(x, x, torch.zeros(2), torch.zeros(2)))
    calls = {
        "D": lambda: softmax(*[torch.zeros(2, 3 if odd else 4)] * 2),
        "dtype": lambda: softmax(*[half if odd else x] * 2),
        "x and y": lambda: softmax(x, torch.zeros(2, 3) if odd else x),
        "dtype of y": lambda: softmax(x, half if odd else x),
        "rows": lambda: softmax(x, x[:1] if odd else x),
        "vector": lambda: softmax(x[0] if odd else x, x),
        "form": lambda: softmax(x, x, "all_gather" if odd else "ring"),
        "unknown form": lambda: softmax(x, x, "star" if odd else "ring"),
        "kind": lambda: sigmoid(x) if odd else softmax(x, x),
        "pairing": lambda: softmax(x, x, pairing=pairing if odd else None),
        "length of pairing": lambda: softmax(
            x, x, pairing=pairing._replace(x_sample=torch.arange(3)) if odd else pairing
        ),
        "guide": lambda: softmax(x, x, pairing=guided if odd else pairing),
        "hardness": lambda: softmax(x, x, pairing=pairing._replace(hardness=float(odd))),
        "direction": lambda: softmax(x, x, direction="y_to_x" if odd else "x_to_y"),
        "learned scale": lambda: softmax(x, x, learned=odd),
        "learned bias": lambda: sigmoid(x, learned=not odd),
        "gradient mode": without_gradients,
        "refuse": lambda: refuse(ValueError("nothing to do")) if odd else softmax(x, x),
        "second derivative": second_derivative,
    }  # fmt: skip
    found = {}
    for name, call in calls.items():
        try:
            found[name] = f"{type(call()).__name__}"
        except (RuntimeError, TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


class Joined(nn.Module):
    """An encoder of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, SIZE), nn.Linear(2, SIZE)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.left(inputs[0]) * self.right(inputs[1])


def model_of(form: str, **options: Any) -> Aligner:
    """The same on every rank: three modalities in float64, without dropout."""
    torch.manual_seed(11)
    text = nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(32, 9))
    image = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 9))
    audio = nn.Sequential(Joined(), nn.Linear(SIZE, 9))
    encoders = {"text": text, "image": image, "audio": audio}
    features = dict.fromkeys(encoders, 9)
    aligner = Aligner(encoders, SIZE, projection="linear", features=features, form=form, **options)
    return aligner.double()


SHARES = (5, 2, 3, 1)


def samples_of(count: int) -> list[dict[str, Any]]:
    """Every rank's call: its part of a batch, of which the second rank has no audio."""
    g = torch.Generator().manual_seed(5)
    calls = []
    for one, rows in enumerate(SHARES[:count]):
        image, left, right = (
            torch.randn(rows, n, generator=g, dtype=torch.float64) for n in (5, 3, 2)
        )
        presence = torch.rand(rows, 3, generator=g) > 0.3
        presence[0] = True
        presence[:, 2] &= one != 1
        groups = torch.randint(4, (rows,), generator=g)
        ids = torch.randint(11, (rows, 4), generator=g)
        batch = {"text": ids, "image": image, "audio": (left, right)}
        calls.append({"batch": batch, "presence": presence, "groups": groups})
    return calls


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """By name, whole where FSDP2 has sharded them."""
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        found[name] = None if grad is None else getattr(grad, "full_tensor", grad.clone)()
    return found


def data_parallel() -> Any:
    """DDP around the aligner and around the cached one, with both forms and both losses."""
    found = {}
    call = samples_of(ranks())[rank()]
    for form in FORMS:
        for kind in ("softmax", "sigmoid"):
            for chunk_size in (None, 2):
                aligner = model_of(form, loss=kind)
                inner = aligner if chunk_size is None else CachedAligner(aligner, chunk_size)
                wrapped = DistributedDataParallel(inner)
                reduced: list[int] = []
                wrapped.register_comm_hook(reduced, counting)
                for _ in range(2):  # DDP rearranges its buckets after the first backward
                    reduced.clear()
                    wrapped.zero_grad()
                    output = wrapped(**call)
                    output.loss.backward()
                found[f"{form} {kind} {chunk_size}"] = (
                    output.loss.detach(), output.pair_counts, gradients_of(aligner), sum(reduced),
                )  # fmt: skip
    return found


def without_a_modality() -> Any:
    """The second rank's batch does not even name one: its encoder gets the others' gradients."""
    call = samples_of(ranks())[rank()]
    if rank() == 1:
        del call["batch"]["audio"]
    aligner = model_of("ring")
    wrapped = DistributedDataParallel(CachedAligner(aligner, 2))
    wrapped(**call).loss.backward()
    return gradients_of(aligner)


def mistakes_of_one_rank() -> Any:
    """Before anything travels; of sharded encoders, what the ranks' batches hold too."""
    call = samples_of(ranks())[rank()]
    odd = rank() == 1
    rows = {**call, "batch": {**call["batch"], "image": call["batch"]["image"][: 0 if odd else 9]}}
    learned = {**call, "batch": {**call["batch"], "image": call["batch"]["image"].clone()}}
    learned["batch"]["image"].requires_grad_(odd)
    found = {}
    for name, given in (("rows", rows), ("learned", learned)):
        try:
            cached(model_of("ring"), **given, chunk_size=2)
        except ValueError as error:
            found[name] = str(error)
    return found


def counting(reduced, bucket):  # DDP looks at annotations
    reduced.append(bucket.buffer().numel())
    return default_hooks.allreduce_hook(None, bucket)


def sharded() -> Any:
    """FSDP2 on every encoder and head."""
    found = {}
    call = samples_of(ranks())[rank()]
    for form in FORMS:
        for chunk_size in (None, 2):
            aligner = model_of(form)
            for module in (*aligner.encoders.values(), *aligner.projections.values()):
                fully_shard(module, mesh=init_device_mesh("cpu", (ranks(),)))
            model = aligner if chunk_size is None else CachedAligner(aligner, chunk_size)
            output = model(**call)
            output.loss.backward()
            found[f"{form} {chunk_size}"] = (
                output.loss.detach(), output.pair_counts, gradients_of(aligner),
            )  # fmt: skip
    lacking = {**call, "batch": dict(list(call["batch"].items())[: 3 - rank()])}
    try:
        cached(aligner, **lacking, chunk_size=2)
    except ValueError as error:
        found["lacking"] = str(error)
    whole = model_of("ring")
    fully_shard(whole, mesh=init_device_mesh("cpu", (ranks(),)))
    try:
        cached(whole, **call, chunk_size=2)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    if device().type != "cpu":
        torch.get_device_module(device()).set_device(device())
    with process_group(Path(out) / "store", os.environ.get("ACCEL_TEST_BACKEND", "gloo")):
        for name in names:
            found = tree_map(on_cpu, globals()[name]())
            torch.save(found, Path(out) / f"{name}-{rank()}.pt")
            distributed.barrier()


def on_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


if __name__ == "__main__":
    main(*sys.argv[1:])
