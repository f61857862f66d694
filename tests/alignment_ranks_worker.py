"""One of several processes that train an aligner: python alignment_ranks_worker.py DIRECTORY CASE…

What a case gives on this rank goes to DIRECTORY/CASE-RANK.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from accel.alignment import (
    Aligner,
    Bias,
    Temperature,
    cached,
    contrastive_loss,
    first_sample,
    grouped,
    guided,
    matched_pairs,
    normalized,
)
from tests.alignment_models import aligner, batch
from tests.process_groups import process_group

SIZES = (4, 4)  # samples of each rank
OPTIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "sigmoid": {"loss": "sigmoid"},
    "negative": {"unpaired": "negative"},
    "count": {"weights": "count"},
    "bound": {"temperature": 100.0},
}
FORMS = ("all_gather", "ring")
CASES = tuple(f"{option}-{form}" for option in OPTIONS for form in FORMS)


def model_of(case: str, **options: Any) -> Aligner:
    """The same on every rank."""
    torch.manual_seed(5)
    return aligner(**OPTIONS[case.split("-")[0]], **options)


def whole_batch() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Inputs, presence and groups of all ranks.

    Of text-audio the second rank has nothing, of image-audio nobody has; on the second rank alone
    all that is there of text and image is paired.
    """
    torch.manual_seed(6)
    given = batch(sum(SIZES))
    presence = torch.tensor(
        [[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 0]]
    ).bool()
    return given, presence, torch.tensor([0, 1, 2, 3, 0, 0, 5, 2])


def trained(case: str) -> Any:
    """Loss, counts and the gradients that DDP leaves."""
    given, presence, groups = whole_batch()
    rank = distributed.get_rank()
    rows = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    model = DistributedDataParallel(model_of(case, form=case.split("-")[1]))
    part = {name: one[rows] for name, one in given.items()}
    output = model(part, presence=presence[rows], groups=groups[rows])
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    return output.loss.detach(), output.pair_counts, found


def nothing() -> str:
    """A batch in which no rank has a pair, on every rank the same error."""
    model = model_of("softmax", form="all_gather")
    given = {name: one[:3] for name, one in whole_batch()[0].items()}
    try:
        model(given, presence=torch.eye(3, dtype=torch.bool))
    except ValueError as error:
        return str(error)
    return "no error"


def refused(case: str) -> str:
    """What the second rank alone does wrong, as every rank hears of it."""
    given, presence, groups = whole_batch()
    model = model_of("softmax", form="ring", check=case == "nan")
    if distributed.get_rank() == 1:
        if case == "groups":
            groups = groups[:3]
        elif case == "nan":
            given["image"][0] = torch.nan
        else:
            given["text"] = given["text"][:5]
    try:
        model(given, presence=presence, groups=groups)
    except ValueError as error:
        return str(error)
    return "no error"


def under_autocast() -> Any:
    """Losses and gradients of both forms in float32, outside of autocast and in it."""
    torch.manual_seed(7 + distributed.get_rank())
    leaves = [normalized(torch.randn(20, 24)).detach().requires_grad_() for _ in range(2)]
    found = []
    for form in FORMS:
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = contrastive_loss(*leaves, scale=30.0, form=form)
                gradients = torch.autograd.grad(loss, leaves)
            found.append((loss.detach(), *gradients))
    return found


def bounded() -> Any:
    """One rank alone wants a lower scale, both together a higher one, and are at the bound."""
    rank = distributed.get_rank()
    temperature = Temperature(4.0, bounds=(1.0, 4.0))
    x = torch.eye(6).roll(3 * rank, 1)[:3]
    y = x.roll(1, 0) if rank == 1 else x
    loss = contrastive_loss(x, y, scale=temperature(), form="all_gather")
    loss.backward()
    return loss.detach(), temperature.log_scale.grad


class Raising(nn.Module):
    """An encoder that raises what it is given, the same object each time, on one rank."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, inputs: Tensor) -> Tensor:
        if distributed.get_rank() == 1:
            raise self.error
        return inputs


def said_of(call: Callable[[], object]) -> str:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def raising() -> Any:
    """An encoder of the second rank alone raises, twice: every rank hears of it, both times."""
    errors = [RuntimeError("out of memory"), IndexError("index out of range"), KeyError("word")]
    given = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    found = {}
    for form in FORMS:
        for error in errors:
            model = Aligner({"a": Raising(error), "b": nn.Identity()}, dim=3, form=form)
            calls = {
                "at once": partial(model, given),
                "again": partial(model, given),
                "cached": partial(cached, model, given, chunk_size=2),
            }
            for name, call in calls.items():
                found[f"{form} {type(error).__name__} {name}"] = said_of(call)
    return found


def before_chunks_are_agreed() -> str:
    """Sharded encoders agree on chunks; the second rank does not get that far."""
    odd = distributed.get_rank() == 1
    model = Aligner({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}, dim=3, form="ring")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for encoder in model.encoders.values():
        fully_shard(encoder, mesh=mesh)
    given = {name: torch.randn(4, 3).requires_grad_(odd) for name in "ab"}
    return said_of(partial(cached, model, given, chunk_size=2))


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weights": ({"weights": {"a-b": 1}}, {"weights": {"a-b": 2.5}}),
    "count": ({}, {"weights": "count"}),
    "margin": ({"margin": 0}, {"margin": 0.1}),
    "margin_strategy": ({}, {"margin_strategy": "relative"}),
    "hardness": ({}, {"hardness": 2.0}),
    "duplicates": ({}, {"duplicates": "ignore"}),
    "pairs": ({}, {"pairs": [("b", "c"), ("a", "b")]}),
    "direction": ({"direction": "x_to_y"}, {"direction": "y_to_x"}),
    "unpaired": ({}, {"unpaired": "negative"}),
    "form": ({}, {"form": "ring"}),
    "loss": ({}, {"loss": "sigmoid"}),
    "scale": ({}, {"temperature": Temperature(9.0, learnable=False)}),
    "bias": (
        {"loss": "sigmoid", "bias": Bias(-9.0, learnable=False)},
        {"loss": "sigmoid", "bias": {"a-b": Bias(-9.0)}},
    ),
}
"""Options of an aligner of the first rank and of the second."""


def different() -> Any:
    """Options that differ, in a batch that both have the data for."""
    given = {name: torch.randn(4, 3) for name in "abc"}
    found = {}
    for name, options in DIFFERENT.items():
        own = {"form": "all_gather", **options[distributed.get_rank()]}
        model = Aligner({one: nn.Identity() for one in "abc"}, dim=3, **own)

        def step(model: Aligner = model) -> None:
            model(given, groups=torch.zeros(4, dtype=torch.int64)).loss.backward()

        found[name] = said_of(step)
    return found


def changed() -> Any:
    """What a backward says of a pairing that was changed in between, and of one that was not.

    A guide may come from a frozen model in inference mode, whose tensors count no changes.
    """
    first = first_sample(4)
    x, y = (normalized(torch.randn(4, 3)).detach().requires_grad_() for _ in range(2))
    found = {}
    for form in FORMS:
        for kind in ("softmax", "sigmoid"):
            for what in ("nothing", "x_sample", "y_group", "threshold", "inference"):
                number = torch.arange(4) + first
                pairing = matched_pairs(number, number.clone())
                pairing = grouped(pairing, number % 3, number % 3, "ignore")
                with torch.inference_mode(what == "inference"):
                    pairing = guided(pairing, torch.randn(4, 2), torch.randn(4, 2))
                loss = contrastive_loss(x, y, scale=5.0, kind=kind, pairing=pairing, form=form)
                if what == "threshold":
                    pairing.guide.y_threshold.zero_()
                elif what in pairing._fields:
                    getattr(pairing, what).zero_()
                found[f"{form} {kind} {what}"] = said_of(loss.backward)
    return found


def main(out: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        found = {case: trained(case) for case in CASES}
        found["nothing"], found["bounded"] = nothing(), bounded()
        found["autocast"] = under_autocast()
        found["raising"], found["chunks"] = raising(), before_chunks_are_agreed()
        found["different"], found["changed"] = different(), changed()
        found |= {case: refused(case) for case in ("groups", "nan", "sizes")}
        torch.save(found, Path(out) / f"{distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
