"""One of several processes that train an aligner: python alignment_ranks_worker.py DIRECTORY CASE…

What a case gives on this rank goes to DIRECTORY/CASE-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from accel.alignment import Aligner, Temperature, contrastive_loss, normalized
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


def main(out: str) -> None:
    torch.set_num_threads(1)
    with process_group(Path(out) / "store"):
        found = {case: trained(case) for case in CASES}
        found["nothing"], found["bounded"] = nothing(), bounded()
        found["autocast"] = under_autocast()
        found |= {case: refused(case) for case in ("groups", "nan", "sizes")}
        torch.save(found, Path(out) / f"{distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
