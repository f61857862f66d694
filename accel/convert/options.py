"""What a run of the converter is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["accel", "torch", "npu"]
SourceName = Literal["cuda", "npu", "musa", "mlu"]


@dataclass(frozen=True)
class Options:
    """The same for all files of a run.

    Attributes:
        target: What the output calls: this library, `torch.accelerator` alone, or torch_npu.
        source: What the input is bound to. All but `cuda` take vendor code back to agnostic code.
        chip: The Ascend chip whose limits are asked: a column of the support tables.
        select: Ids or prefixes of the rules that may convert; empty for all.
        ignore: Ids or prefixes of rules that must not convert; their places are kept, and counted.
        user_rules: The text of a user's rule file (JSON); "" for none.
    """

    target: TargetName = "accel"
    source: SourceName = "cuda"
    chip: str = "910B2"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    user_rules: str = ""

    def allows(self, rule: str) -> bool:
        """Whether a rule may convert in this run."""
        if self.select and not rule.startswith(self.select):
            return False
        return not (self.ignore and rule.startswith(self.ignore))
