"""How far benign results scatter, from which the factors of `accel_kernels.budgets` are taken.

For outputs and gradients of attention by each kernel that runs here: the error against float64 over
that of the plain formula in the same dtype, over many seeds.
"""

from collections.abc import Callable

import environment
import torch
from torch import Tensor

import accel
from accel.testing.cases import ATTENTION_CASES, attention_formula
from accel_kernels import budgets

SEEDS = 100
DTYPES = (torch.float32, torch.bfloat16)


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def main() -> None:
    rms, worst = [], []
    total = len(ATTENTION_CASES) * len(DTYPES) * SEEDS
    with accel.report.Progress(total, "population") as progress:
        for case in ATTENTION_CASES:
            options = {"is_causal": case.is_causal}
            for dtype in DTYPES:
                for seed in range(SEEDS):
                    *inputs, grad = case.inputs(dtype, seed)
                    truth, plain = (
                        with_gradients(
                            lambda *t, options=options: attention_formula(*t, **options),
                            [tensor.to(d) for tensor in inputs],
                            grad.to(d),
                        )
                        for d in (torch.float64, dtype)
                    )
                    references = [
                        budgets.deviation(p, t) for p, t in zip(plain, truth, strict=True)
                    ]
                    floor = budgets.typical(references)
                    for spec in accel.backends("segmented_attention"):
                        segment = {} if spec.name == "sdpa" else {"segment_size": case.segment_size}
                        if spec.name == "sdpa" and case.segment_size:
                            continue
                        kernel = spec.load()
                        actual = with_gradients(
                            lambda *t, k=kernel, o={**options, **segment}: k(*t, **o)[0],
                            inputs,
                            grad,
                        )
                        for a, t, reference in zip(actual, truth, references, strict=True):
                            error = budgets.deviation(a, t)
                            rms.append(error.rms / max(reference.rms, floor.rms))
                            worst.append(error.worst / max(reference.worst, floor.worst))
                    progress.advance()
    result = {
        "results": len(rms),
        "largest_rms_ratio": max(rms),
        "largest_worst_ratio": max(worst),
        "share_of_worst_ratios_above_2": sum(ratio > 2 for ratio in worst) / len(worst),
        "factor": budgets.FACTOR,
        "worst_factor": budgets.WORST_FACTOR,
    }
    print(result)
    print(f"written: {environment.write('budget_population', result)}")


if __name__ == "__main__":
    main()
