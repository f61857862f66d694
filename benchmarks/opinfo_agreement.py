"""PyTorch's own OpInfo samples, all of them, on the simulated Ascend against the CPU.

Counts operator/dtype pairs that agree, with a reason for each that does not, and which of the
kernels that torch_npu registers the calls reached. Fails if a difference has no reason.
"""

import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

# Each process computes on one core; as torch asks, set before it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import accel
import accel.simulate

PROCESSES = 2


def start() -> None:
    """Make a process ready to compare."""
    if not accel.simulate.active():
        accel.simulate.activate()
    import torch

    torch.set_num_threads(1)


def compare(index: int) -> dict[str, Any]:
    """Compare one pair, by its place in the list."""
    from tests.ascend import opinfo

    pair = _pairs()[index]
    outcome = opinfo.check(pair)
    return {
        "pair": pair.name,
        "calls": outcome.calls,
        "misses": outcome.misses,
        "deviations": outcome.deviations,
        "reached": outcome.reached,
    }


def _pairs() -> list[Any]:
    from tests.ascend import opinfo

    if not _PAIRS:
        _PAIRS.extend(opinfo.pairs())
    return _PAIRS


_PAIRS: list[Any] = []


def compare_all() -> list[dict[str, Any]]:
    total = len(_pairs())
    context = multiprocessing.get_context("spawn")
    found = []
    with (
        ProcessPoolExecutor(PROCESSES, context, initializer=start) as pool,
        accel.report.Progress(total, "OpInfo", unit="pair") as progress,
    ):
        waiting = [pool.submit(compare, index) for index in range(total)]
        for future in as_completed(waiting):
            found.append(future.result())
            progress.advance(text=found[-1]["pair"])
    return found


def call_directly(reached: set[str]) -> dict[str, Any]:
    """Call by schema the kernels that no sample reached; they join `reached`."""
    from tests.ascend import opinfo, opinfo_direct
    from tests.ascend.opinfo_direct import written_cases

    wanted = [name for name, kind in _kinds().items() if kind != "raising" and name not in reached]
    cases = {case.name: case for case in written_cases(wanted)}
    calls = opinfo_direct.recorded_calls(opinfo.recording_pairs())
    rest = [name for name in wanted if name not in cases]
    cases |= {case.name: case for case in opinfo_direct.derived_cases(calls, rest)}
    misses = {}
    for name, case in cases.items():
        miss, also = case.check()
        reached |= also
        if miss is not None:
            misses[name] = miss
    return {"kernels": len(cases), "misses": misses}


def _kinds() -> dict[str, str]:
    from accel.simulate.operators import registration

    return {
        name: kind
        for (name, key), kind in sorted(registration.kinds().items())
        if key == registration.DEVICE_KEY and name.startswith("aten::")
    }


def coverage(by_samples: set[str], reached: set[str]) -> dict[str, Any]:
    from tests.ascend.opinfo_expected import NOT_REACHED

    kinds = _kinds()
    missing = [name for name in kinds if name not in reached]
    return {
        "registered_aten_kernels": len(kinds),
        "by_kind": dict(Counter(kinds.values())),
        "reached_by_samples": len(kinds.keys() & by_samples),
        "reached": len(kinds.keys() & reached),
        "share": round(len(kinds.keys() & reached) / len(kinds), 4),
        "not_reached": {
            name: NOT_REACHED.get(name, "raises: no implementation")
            for name in missing
            if name in NOT_REACHED or kinds[name] == "raising"
        },
        "not_reached_without_reason": [
            name for name in missing if name not in NOT_REACHED and kinds[name] != "raising"
        ],
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    misses = [item for item in found if item["misses"]]
    deviating = [item for item in found if item["deviations"] and not item["misses"]]
    total = len(found)
    differing = sum(len(item["misses"]) + len(item["deviations"]) for item in found)
    calls = sum(item["calls"] for item in found)
    return {
        "pairs": total,
        "pairs_agreeing_in_every_call": total - len(misses) - len(deviating),
        "pairs_agreeing_but_for_deviations_of_the_real_torch_npu": len(deviating),
        "pairs_differing": len(misses),
        "share_agreeing_in_every_call": round((total - len(misses) - len(deviating)) / total, 4),
        "share_agreeing_with_the_real_torch_npu": round((total - len(misses)) / total, 4),
        "calls": calls,
        "calls_agreeing": calls - differing,
        "share_of_calls_agreeing": round((calls - differing) / calls, 5),
        "deviations_of_the_real_torch_npu": _by_reason(deviating),
        "differences": {item["pair"]: item["misses"] for item in misses},
    }


def _by_reason(deviating: list[dict[str, Any]]) -> dict[str, list[str]]:
    reasons: dict[str, set[str]] = {}
    for item in deviating:
        for reason in item["deviations"].values():
            reasons.setdefault(reason, set()).add(item["pair"])
    return {reason: sorted(names) for reason, names in sorted(reasons.items())}


def exceptions() -> dict[str, dict[str, str]]:
    """Where the comparison asks for less than equality, as the tests state it."""
    from tests.ascend import opinfo_expected as expected

    return {
        "within_tolerance_times": {
            name: f"{factor}: {reason}" for name, (factor, reason) in expected.ROUNDED.items()
        },
        "dtype_and_shape_only": expected.ANY_VALUES,
        "no_strided_out": expected.NO_STRIDED_OUT,
        "no_out": expected.NO_OUT,
        "contiguous_operands": expected.FALLS_BACK,
        "arguments_on_the_host": expected.HOST_ARGUMENTS,
    }


def main() -> None:
    begun = time.perf_counter()
    start()
    import environment

    found = compare_all()
    by_samples = set().union(*(item["reached"] for item in found))
    reached = set(by_samples)
    direct = call_directly(reached)
    result = {
        **summary(found),
        "called_by_schema": direct,
        "coverage": coverage(by_samples, reached),
        "exceptions": exceptions(),
        "processes": PROCESSES,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    shown = {key: value for key, value in result.items() if not isinstance(value, dict)}
    print(shown)
    print(f"written: {environment.write('opinfo_agreement', result)}")
    unexplained = (
        len(result["differences"])
        + len(direct["misses"])
        + len(result["coverage"]["not_reached_without_reason"])
    )
    if unexplained:
        raise SystemExit(f"{unexplained} differences or unreached kernels have no reason")


if __name__ == "__main__":
    main()
