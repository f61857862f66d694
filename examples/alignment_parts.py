"""What both alignment examples share: the optimizer, and the figures that they print."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from accel.alignment import TrainingReport


def optimizer_of(model: nn.Module, rate: float, steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW without weight decay of vectors and temperatures; a cosine after 20 steps."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), weight_decay=0.1)
    return optimizer, LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, math.cos(math.pi / 2 * step / steps) ** 2)
    )


def print_figures(report: TrainingReport) -> None:
    """Recall of all pairs, zero-shot accuracy and health, as far as the report holds them."""
    pairs = report.retrieval or ()
    other = "emergent" if any(one.is_trained for one in pairs) else "untrained"
    for one in pairs:
        found = one.found
        recalls = "  ".join(f"R@{k} {100 * share:4.1f} %" for k, share in found.recall.items())
        kind = "trained" if one.is_trained else other
        print(
            f"{one.query:>6} -> {one.target:<6} {kind:<9} {recalls}  median rank "
            f"{found.median_rank:g} of {found.targets}, "
            f"{found.recall[1] / found.chance[1]:.0f} times chance"
        )
    for name, task in report.zero_shot.items():
        print(
            f"zero-shot, {name}: {100 * task.accuracy[1]:.1f} % of {task.samples} right, one of "
            f"{task.classes} classes; chance {100 * task.chance[1]:.1f} %"
        )
    if report.health:
        for name, of in report.health.modalities.items():
            print(
                f"{name}: mean cosine {of.mean_cosine:.3f}, uniformity {of.uniformity:.2f}, "
                f"effective rank {of.effective_rank:.0f}, ties {of.ties:.2%}"
            )
        for name, between in report.health.pairs.items():
            print(f"{name}: alignment {between.alignment:.3f}, gap {between.gap:.3f}")
