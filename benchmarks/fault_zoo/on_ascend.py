"""Records a step on a simulated Ascend: `python on_ascend.py FOLDER MODEL PRECISION`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import cast

ROOT = Path(__file__).parents[2]


def main(folder: str, model: str, precision: str) -> None:
    """Record the step at both levels."""
    import accel.simulate

    accel.simulate.activate()

    import torch

    from benchmarks.fault_zoo import recorded
    from benchmarks.fault_zoo.models import ModelName
    from benchmarks.fault_zoo.workload import Precision, Workload

    torch.set_num_threads(1)
    for level in ("full", "sketch"):
        workload = Workload(cast("ModelName", model), cast("Precision", precision), "npu")
        recorded.record(workload, Path(folder, level), level, nullcontext())


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    main(*sys.argv[1:])
