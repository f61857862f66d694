"""The vendor's operators on the CPU, noting what is asked of them."""

import math

import torch

from accel_kernels import masks
from accel_kernels.masks import Sizes
from accel_kernels.segmented_attention.npu_fusion import calls as npu_calls
from accel_kernels.segmented_attention.npu_fusion import infer as npu_infer
from accel_kernels.segmented_attention.npu_fusion import packed as npu_packed
from accel_kernels.vendor.npu import REFERENCES

FORWARD, GRADIENT = "npu_fusion_attention", "npu_fusion_attention_grad"
WITH_BIAS = "npu_fusion_attention_v2"


class Chip:
    """The vendor's operators, with what they were asked for, or with a mistake."""

    def __init__(self):
        self.calls = []
        self.mistake = lambda name, arguments: None
        # What is in a row of which all is masked, no page states.
        self.spoils_masked_rows = False

    def install(self, monkeypatch):
        """Stand in for torch_npu's operators, during a test."""
        for module in (npu_calls, npu_infer, npu_packed):
            monkeypatch.setattr(module, "operator", self.operator)
        return self

    def operator(self, name):
        def run(*tensors, **arguments):
            self.mistake(name, arguments)
            self.calls.append((name, tensors, dict(arguments)))
            found = REFERENCES[name](*tensors, **arguments)
            if self.spoils_masked_rows and name == FORWARD:
                nothing = found[2][..., 0] == 0
                for tensor in found[:3]:
                    tensor[nothing] = math.nan
            return found

        return run

    def arguments(self, name=FORWARD):
        """The named arguments of the calls of an operator."""
        return [arguments for called, _, arguments in self.calls if called == name]


def visible(mask, sizes: Sizes):
    """The whole of a mask, bool `[B or 1, H or 1, T, S]`."""
    cpu = torch.device("cpu")
    return masks.dense_visibility(masks.visibility(mask, sizes, cpu), sizes, cpu)
