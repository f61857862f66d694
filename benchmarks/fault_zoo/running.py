"""Everything of the zoo, in processes of one thread each."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import accel
from benchmarks.fault_zoo import assessing, engines
from benchmarks.fault_zoo.assessing_ranks import assess_collectives
from benchmarks.fault_zoo.changes import CHANGES
from benchmarks.fault_zoo.models import ModelName
from benchmarks.fault_zoo.variants import VARIANTS
from benchmarks.fault_zoo.workload import PRECISIONS
from benchmarks.fault_zoo.zoo import FAULTS, Case

PROCESSES = 2
Document = dict[str, Any]
ENGINE_MODELS: tuple[ModelName, ...] = ("gpt", "cnn")
Item = tuple[str, int, str, int]  # what, which, precision, strength or model


def items() -> list[Item]:
    """Everything that a single process runs, grouped by model and precision."""
    found: list[tuple[tuple[str, str], Item]] = []
    for precision in PRECISIONS:
        for index, fault in enumerate(FAULTS):
            found += [
                ((fault.model, precision), ("fault", index, precision, rank)) for rank in range(3)
            ]
        for index, change in enumerate(CHANGES):
            found += [
                ((change.model, precision), ("change", index, precision, rank)) for rank in range(3)
            ]
        for index, variant in enumerate(VARIANTS):
            found += [
                ((model, precision), ("variant", index, precision, place))
                for place, model in enumerate(variant.models)
            ]
        for place, model in enumerate(ENGINE_MODELS):
            found.append(((model, precision), ("ascend", 0, precision, place)))
            if precision == "float32":
                found.append(((model, precision), ("onnxruntime", 0, precision, place)))
    return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def assess(item: Item) -> Document:
    """Run one item, in a process of the pool."""
    torch.set_num_threads(1)
    what, index, precision, rank = item
    given: Any = precision
    if what == "fault":
        fault = FAULTS[index]
        return assessing.assess_fault(Case(fault, fault.strengths[rank], given))
    if what == "change":
        change = CHANGES[index]
        return assessing.assess_change(change, change.strengths[rank], given)
    if what == "variant":
        variant = VARIANTS[index]
        return assessing.assess_variant(variant, variant.models[rank], given)
    engine = engines.assess_ascend if what == "ascend" else engines.assess_onnxruntime
    return engine(ENGINE_MODELS[rank], given)


def _everything(kept: Path | None) -> Iterator[Document]:
    wanted, done = items(), finished(kept)
    left = [item for item in wanted if _name(item) not in done]
    yield from (found for some in done.values() for found in some)
    context = multiprocessing.get_context("spawn")
    collectives = 0 if COLLECTIVES in done else 1
    with accel.report.Progress(len(left) + collectives, "fault zoo", unit="case") as progress:
        with ProcessPoolExecutor(PROCESSES, context) as pool:
            waiting = {pool.submit(assess, item): item for item in left}
            for future in as_completed(waiting):
                found = future.result()
                _keep(kept, _name(waiting[future]), [found])
                progress.advance(text=found.get("fault") or found["variant"])
                yield found
        if collectives:
            some = assess_collectives()
            _keep(kept, COLLECTIVES, some)
            progress.advance(text=COLLECTIVES)
            yield from some


COLLECTIVES = "collectives"


def _name(item: Item) -> str:
    return "/".join(map(str, item))


def finished(path: Path | None) -> dict[str, list[Document]]:
    """What an earlier run had finished, by item."""
    if path is None or not path.exists():
        return {}
    return dict(json.loads(line) for line in path.read_text().splitlines())


def _keep(path: Path | None, name: str, found: list[Document]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps([name, found]) + "\n")


def run(kept: Path | None = None) -> Document:
    """Run everything; the results in a fixed order.

    Args:
        kept: Where finished cases are noted down, and taken from if it exists.
    """
    faults: list[Document] = []
    variants: list[Document] = []
    for found in _everything(kept):
        (faults if "fault" in found else variants).append(found)
    order = {name: index for index, name in enumerate(PRECISIONS)}
    every = [fault.name for fault in FAULTS] + [change.name for change in CHANGES]
    names = {name: index for index, name in enumerate(every)}
    faults.sort(key=lambda f: (names.get(f["fault"], 999), f["fault"], order[f["precision"]],
                               f["rank"]))  # fmt: skip
    variants.sort(key=lambda v: (v["variant"], v["model"], order[v["precision"]]))
    return {"faults": faults, "variants": variants}
