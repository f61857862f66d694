"""The table of a policy, its notes, and what it says of chips."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import accel
from accel.devices.cuda import CudaDevice, RocmDevice
from accel.devices.npu import NpuDevice
from accel.dispatch import backends
from accel.precision import Policy
from accel.precision.policy import PRESETS
from accel.precision.policy.chip import chip_formats


class Mlp(nn.Module):
    def __init__(self, wide: int = 48) -> None:
        super().__init__()
        self.up = nn.Linear(32, wide)
        self.act = nn.GELU()
        self.down = nn.Linear(wide, 32)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Lm(nn.Module):
    def __init__(self, wide: int = 48, symbols: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 32)
        self.layers = nn.Sequential(*(Mlp(wide) for _ in range(3)))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, symbols, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.layers(self.embed(x))))


def notes(policy, model, device="sm_90"):
    return Policy.parse(policy).explain(model, device).notes


WHOLE = """\
parameters float32, compute bfloat16, output float32; 93.5% of the multiplications of linear layers in eight bits

module           type       computes in  forward                    data gradient              weight gradient  rules
---------------  ---------  -----------  -------------------------  -------------------------  ---------------  -------
embed            Embedding  bfloat16                                                                            0
layers.0-2.up    Linear     bfloat16     e4m3:1x128 * e4m3:128x128  e4m3:1x128 * e4m3:128x128  e4m3:1x128       0, 4, 5
layers.0-2.down  Linear     bfloat16     e4m3:1x128 * e4m3:128x128  e4m3:1x128 * e4m3:128x128  e4m3:1x128       0, 4, 5
norm             LayerNorm  float32                                                                             1
head             Linear     bfloat16     bfloat16                   bfloat16                   bfloat16         2
and 3 modules without parameters, by rule 0

no.  rule                                           modules
---  ---------------------------------------------  -------
  0  the policy's compute                                10
  1  norm=float32                                         1
  2  <head>?=bfloat16                                     1
  3  router|gate|*.router|*.gate<linear>?=bfloat16        0
  4  <linear>/weight=float8_e4m3fn:128x128                6
  5  <linear>=float8_e4m3fn:1x128                         6

- a chip's 8-bit weight_gradient pads the rows of a batch (all its dimensions but the last, multiplied) to a multiple of 16
- a module that computes in 16 bits does so under autocast, whose table keeps some operators, such as softmax, norms and losses, in float32

on Ascend950DT_9581:
format                                        is                                                                                 for
--------------------------------------------  ---------------------------------------------------------------------------------  ----------
bfloat16                                      computed natively                                                                  11 modules
float8_e4m3fn:1x128 by float8_e4m3fn:128x128  computed natively                                                                  6 modules
float8_e4m3fn:1x128 by float8_e4m3fn:1x128    computed natively, one product for each stretch of columns with one scale: slower  6 modules
float32                                       computed natively                                                                  1 module"""  # noqa: E501


def suppose_kernels_run_on(monkeypatch, *device_types):
    """Whatever real hardware they have run on by now."""
    specs = [replace(spec, proven_on=frozenset(device_types)) for spec in backends("scaled_matmul")]
    monkeypatch.setattr("accel.precision.policy.chip.backends", lambda _: specs)


class TestTable:
    def test_is_printed_whole(self, monkeypatch):
        suppose_kernels_run_on(monkeypatch, "npu")
        explanation = Policy.parse("fp8_block,output=f32; norm=f32").explain(Lm(), "950")
        assert str(explanation) == WHOLE

    def test_rows_are_not_joined(self):
        explanation = Policy.parse("fp8_block,output=f32; norm=f32").explain(Lm(), "950")
        rows = {row.name: row for row in explanation.rows}
        parts = [f"layers.{n}.{name}" for n in range(3) for name in ("up", "act", "down")]
        assert list(rows) == ["embed", *parts, "norm", "head"]
        up = rows["layers.2.up"]
        assert up.products == ("e4m3:1x128 * e4m3:128x128",) * 2 + ("e4m3:1x128",)
        assert (up.kind, up.compute, up.rules, up.parameters) == (
            "Linear",
            "bfloat16",
            (0, 4, 5),
            1584,
        )
        assert (rows["norm"].rules, rows["layers.0.act"].parameters) == ((1,), 0)
        assert rows["embed"].products == ("", "", "")

    @pytest.mark.parametrize(
        ("policy", "share"),
        [
            ("bf16", 0.0),
            ("*=e4m3", 1.0),
            ("compute=bf16; layers=e4m3", 9216 / 9856),
            ("compute=bf16; layers/gradient=bf16; layers=e4m3", 9216 / 9856 / 3),
            ("compute=bf16; layers@forward=e4m3; layers.0@data_gradient=e4m3", 12288 / 29568),
        ],
    )
    def test_share_in_eight_bits(self, policy, share):
        assert Policy.parse(policy).explain(Lm(), "sm_90").share == share

    def test_a_model_without_linear_layers(self):
        explanation = Policy.parse("bf16").explain(nn.Conv1d(3, 3, 3), "sm_90")
        assert explanation.share == 0.0
        assert "(the model)  Conv1d  bfloat16" in str(explanation)

    @pytest.mark.parametrize(
        ("odd", "expected"),
        [
            ([], ["blocks.0-3.fc"]),
            ([1], ["blocks.0,2-3.fc", "blocks.1.fc"]),
            ([0, 3], ["blocks.0,3.fc", "blocks.1-2.fc"]),
            ([0, 1, 3], ["blocks.0-1,3.fc", "blocks.2.fc"]),
        ],
    )
    def test_layers_that_differ_in_a_number_are_one_row(self, odd, expected):
        model = nn.ModuleDict(
            {"blocks": nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(2, 2)}) for _ in range(4))}
        )
        names = "|".join(f"blocks.{number}" for number in odd) or "none"
        policy = Policy.parse(f"compute=bf16; {names}?=f32")
        lines = str(policy.explain(model, "sm_90")).splitlines()
        assert [line.split()[0] for line in lines[4 : 4 + len(expected)]] == expected
        assert lines[4 + len(expected)] == ""

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ((2, 2), ["0-1.0-1"]),
            ((12, 12), ["0-1.0-11"]),
            ((2, 1), ["0.0", "0.1", "1.0"]),
        ],
    )
    def test_two_numbers_are_joined_if_all_combinations_are_there(self, sizes, expected):
        model = nn.Sequential(*(nn.Sequential(*(nn.Linear(2, 2) for _ in range(n))) for n in sizes))
        lines = str(Policy.parse("bf16").explain(model, "sm_90")).splitlines()
        assert [line.split()[0] for line in lines[4 : lines.index("", 4)]] == expected

    def test_a_policy_of_a_model_on_meta_speaks_of_no_chip(self):
        explanation = Policy.parse("fp8_block").explain(Lm().to("meta"))
        assert explanation.chips == {}
        assert "\non " not in str(explanation)


class TestNotes:
    @pytest.mark.parametrize("name", PRESETS)
    def test_a_transformer_layer(self, name):
        """Of torch's own: its attention is one function, and evaluation may be one call."""
        layer = nn.TransformerEncoderLayer(32, 2, 40, batch_first=True)
        said = notes(name, nn.TransformerEncoder(layer, 2))
        dtype = "float16" if name == "fp16" else "bfloat16"
        assert said[0] == (
            "layers.0-1.self_attn: nn.MultiheadAttention hands the weights of its projections "
            "(in_proj_weight, and out_proj, which is never called) to one call of torch's, so they "
            f"are computed in {dtype} and no rule reaches them one by one; for eight bits use an "
            "attention with nn.Linear projections"
        )
        eight = name not in ("bf16", "fp16")
        assert any("layers.0-1: in evaluation" in note for note in said) == eight
        passed = "layers.0-1.self_attn.out_proj: nn.MultiheadAttention computes it without calling"
        assert any(passed in note for note in said) == eight
        pads = "layers.0-1.linear1: a chip's 8-bit product pads out_features from 40 to 48"
        assert (pads in said) == eight
        pads = "layers.0-1.linear2: a chip's 8-bit product pads in_features from 40 to 48"
        assert (pads in said) == eight

    def test_evaluation_in_one_call_is_true(self, monkeypatch):
        layer = nn.TransformerEncoderLayer(32, 2, 40, batch_first=True).eval()
        called = []
        own = layer.linear1.forward
        monkeypatch.setattr(layer.linear1, "forward", lambda x: called.append("linear1") or own(x))
        with torch.no_grad():
            layer(torch.zeros(1, 3, 32))
            assert called == []
            with torch.autocast("cpu"):  # torch looks at CUDA's autocast only
                layer(torch.zeros(1, 3, 32))
            assert called == []
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                layer(torch.zeros(1, 3, 32))
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        assert called == ["linear1"]

    @pytest.mark.parametrize(
        ("sizes", "policy", "words"),
        [
            ((32, 48), "*=e4m3", None),
            ((30, 48), "*=e4m3", "in_features from 30 to 32"),
            ((32, 1), "*=e4m3", "out_features from 1 to 16"),
            ((17, 33), "*=e4m3", "in_features from 17 to 32 and out_features from 33 to 48"),
            ((17, 33), "@weight_gradient=e4m3", "in_features from 17 to 32"),
            ((17, 33), "/weight=e4m3", None),
            ((17, 33), "compute=bf16", None),
        ],
    )
    def test_padding(self, sizes, policy, words):
        said = [note for note in notes(policy, nn.Linear(*sizes)) if "8-bit product" in note]
        assert said == ([f"the model: a chip's 8-bit product pads {words}"] if words else [])

    def test_rows_are_padded_for_the_weight_gradient_only(self):
        assert any("pads the rows" in note for note in notes("*=e4m3", nn.Linear(16, 16)))
        assert not any("rows" in note for note in notes("@forward=e4m3", nn.Linear(16, 16)))

    def test_lazy_layers(self):
        said = notes("*=e4m3", nn.LazyLinear(16))
        assert any("is known after" in note or "are known after" in note for note in said)
        assert str(Policy.parse("*=e4m3").explain(nn.LazyLinear(16), "sm_90"))

    def test_an_operand_without_effect(self):
        said = notes("compute=bf16; layers/weight=e4m3", Lm())
        layers = "layers.0-2.up, layers.0-2.down"
        for gemm, partner in (("forward", "input"), ("data_gradient", "gradient")):
            expected = (
                f"{layers}: {gemm} is computed in bfloat16 and not with the weight in "
                f"float8_e4m3fn, since the {partner} is bfloat16"
            )
            assert expected in said

    def test_modules_that_a_rule_cannot_serve(self):
        model = nn.ModuleDict({"a": nn.Conv2d(2, 2, 1), "b": nn.LSTM(2, 2), "c": nn.Linear(2, 2)})
        said = notes("*=e4m3", model)
        start = "rule 1, *=float8_e4m3fn, does not apply to"
        assert f"{start} a: eight bits are for nn.Linear only, not for Conv2d" in said
        assert f"{start} b: eight bits are for nn.Linear only, not for LSTM" in said
        other = "b: holds matrices and is no nn.Linear, so its products are in no eight bits"
        assert other in said
        assert other in notes("<linear>=e4m3", model)
        assert other not in notes("<linear>=f16", model)

    def test_what_a_layer_is_made_of_is_not_told_apart(self):
        said = notes("<linear>=e4m3", nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))
        assert not any("parametrizations" in note for note in said)

    def test_shared_modules_and_parameters(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": shared, "b": shared, "e": nn.Embedding(4, 4)})
        model["e"].weight = shared.weight
        said = notes("bf16", model)
        assert said[:2] == (
            "a is one module with b: a rule that matches any of these names holds for it",
            "a.weight and e.weight are one parameter: it is stored once, and each module computes "
            "with it in its own format",
        )

    def test_parameters_of_another_dtype(self):
        model = Lm()
        model.layers.to(torch.bfloat16)
        assert notes("bf16", model)[0] == (
            "12 parameters are bfloat16 (layers.0-2.up.weight, layers.0-2.up.bias, "
            "layers.0-2.down.weight, layers.0-2.down.bias), while the policy keeps parameters in "
            "float32: cast them with .to(torch.float32) or change params="
        )
        assert not any(
            "parameters are bfloat16" in n for n in notes("params=bf16", model.bfloat16())
        )

    def test_nothing_to_say(self):
        assert notes("compute=f32", nn.Linear(4, 4)) == ()


def verdicts(policy, device):
    explanation = Policy.parse(policy).explain(nn.Linear(16, 16), device)
    ((name, said),) = explanation.chips.items()
    return name, {one.needs: one.verdict for one in said}


PAIRS = {
    "tensor": "e4m3",
    "row": "e4m3:row",
    "mixed": "e4m3:row",
    "blocks": "e4m3:1x128",
    "squares": "e4m3:128x128",
    "1x128": "e4m3:1x128",
    "mx": "e4m3:1x32",
    "e5m2": "e4m3",
    "both e5m2": "e5m2",
    "hif8": "hif8",
    "hif8 blocks": "hif8:1x128",
}
OTHERS = {"mixed": "e4m3", "blocks": "e4m3:128x128", "e5m2": "e5m2", "hif8 blocks": "hif8:128x128"}
NATIVE, PIECES, EMULATED = "native", "pieces", "emulated"
NONE = dict.fromkeys(PAIRS, EMULATED)
WHOLE_SCALES = dict.fromkeys(["tensor", "row", "mixed", "e5m2"], NATIVE)
ADA = NONE | WHOLE_SCALES | dict.fromkeys(["blocks", "squares", "1x128"], PIECES)
HOPPER = ADA | {"blocks": NATIVE, "1x128": NATIVE}
BLACKWELL = ADA | {"mx": NATIVE}
ASCEND_950 = dict.fromkeys(PAIRS, NATIVE) | {"1x128": PIECES}
CHIPS = {
    "cpu": NONE,
    "sm_80": NONE,
    "sm_86": NONE,
    "sm_89": ADA,
    "sm_90": HOPPER,
    "sm_90a": HOPPER,
    "sm_100": BLACKWELL,
    "sm_120": BLACKWELL,
    "910A": NONE,
    "Ascend910B": NONE,
    "910B2": NONE,
    "Ascend910_9391": NONE,
    "310P3": NONE,
    "950": ASCEND_950,
    "Ascend950PR_9589": ASCEND_950,
}


class TestChips:
    @pytest.mark.parametrize("pair", PAIRS)
    @pytest.mark.parametrize("device", CHIPS)
    def test_products_in_eight_bits(self, device, pair):
        left, right = PAIRS[pair], OTHERS.get(pair, PAIRS[pair])
        policy = f"/input@forward={left}; /weight@forward={right}"
        _, said = verdicts(policy, device)
        ((words, verdict),) = ((key, value) for key, value in said.items() if " by " in key)
        assert words.count("float8") == 2
        assert verdict == CHIPS[device][pair]

    @pytest.mark.parametrize(
        ("device", "name", "bfloat16"),
        [
            ("sm_70", "CUDA capability 7.0", "replaced"),
            ("sm_80", "CUDA capability 8.0", "native"),
            ("sm_100", "CUDA capability 10.0", "native"),
            ("910A", "Ascend910A", "replaced"),
            ("Ascend910B", "Ascend910B", "replaced"),
            ("310P3", "Ascend310P3", "replaced"),
            ("910B1", "Ascend910B1", "native"),
            ("950PR", "Ascend950PR_9589", "native"),
        ],
    )
    def test_16_bits(self, device, name, bfloat16):
        policy = "compute=bf16; /input=f16; /gradient=f32"
        assert verdicts("bf16", device) == (name, {"bfloat16": bfloat16})
        assert verdicts("fp16", device) == (name, {"float16": "native"})
        needs = {"bfloat16": bfloat16, "float32": "native"}
        assert verdicts(policy, device) == (name, needs)

    def test_words(self):
        text = str(Policy.parse("fp8_rowwise").explain(nn.Linear(16, 16), "910B2"))
        assert "on Ascend910B2:" in text
        assert "stored as bytes, emulated by a product of wider numbers" in text
        assert text.endswith("refused there unless its settings say `emulate`")
        accepted = Policy.parse("fp8_rowwise,emulate").explain(nn.Linear(16, 16), "910B2")
        assert "refused" not in str(accepted)
        text = str(Policy.parse("bf16").explain(nn.Linear(16, 16), "910A"))
        assert "replaced by float32" in text

    @pytest.mark.parametrize(
        ("policy", "chip", "kernel"),
        [
            ("fp8_block", "sm_90", "scaled_mm"),
            ("fp8_block", "sm_100", "scaled_mm"),
            ("mxfp8", "sm_100", "scaled_mm_mx"),
            ("hif8", "950", "npu"),
        ],
    )
    def test_a_kernel_that_dispatch_does_not_take_by_itself(
        self, policy, chip, kernel, monkeypatch, caplog
    ):
        policy, model = Policy.parse(policy), nn.Linear(16, 16)
        suppose_kernels_run_on(monkeypatch, "cpu")
        sentence = f"the kernel {kernel} has never run there: .*scaled_matmul={kernel}, plain PyTo"
        (line,) = [x for x in str(policy.explain(model, chip)).splitlines() if "never" in x]
        assert re.match(sentence, line)
        policy.resolve(model, chip)
        assert re.search(sentence, caplog.text)
        suppose_kernels_run_on(monkeypatch, "cuda", "npu")
        assert "never" not in str(policy.explain(model, chip))

    def test_nothing_is_said_of_kernels_where_nothing_is_native(self, monkeypatch):
        suppose_kernels_run_on(monkeypatch)
        for policy, chip in ("fp8_rowwise", "910B2"), ("bf16", "sm_90"), ("hif8", "sm_90"):
            assert "never" not in str(Policy.parse(policy).explain(nn.Linear(16, 16), chip))

    def test_unknown_ones(self):
        with pytest.raises(accel.DeviceError, match=r"'abacus' is unknown.*not here is.*sm_90"):
            chip_formats("abacus")
        with pytest.raises(ValueError, match="unknown Ascend chip '910C9'"):
            chip_formats("910C9")

    def test_where_the_model_is(self, device):
        model = nn.Linear(16, 16).to(device.torch_device)
        ((name, said),) = Policy.parse("bf16").explain(model).chips.items()
        assert name == f"{device} ({device.name})"
        expected = {"compute": "native"}.get(device.dtypes.of(torch.bfloat16), "replaced")
        assert [one.verdict for one in said] == [expected]


class TestDevices:
    """The same facts of a device that is here, by what its driver tells."""

    @pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
    def test_cuda(self, monkeypatch, capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        name = f"sm_{capability[0]}{capability[1]}"
        assert CudaDevice(1).scaled_products() == chip_formats(name).products

    @pytest.mark.without_npu
    @pytest.mark.parametrize("soc", ["Ascend910A", "Ascend910B2", "Ascend950DT_9581"])
    def test_ascend(self, monkeypatch, soc):
        npu = SimpleNamespace(get_device_name=lambda index: soc)
        monkeypatch.setattr(torch, "get_device_module", lambda kind: npu)
        assert NpuDevice(0).scaled_products() == chip_formats(soc).products

    def test_an_ascend_that_is_not_known(self, monkeypatch):
        npu = SimpleNamespace(get_device_name=lambda index: "Ascend1234")
        monkeypatch.setattr(torch, "get_device_module", lambda kind: npu)
        assert NpuDevice(0).scaled_products() == frozenset()

    @pytest.mark.parametrize(
        ("architecture", "names"),
        [("gfx90a", []), ("gfx942", ["float8_e4m3fnuz"] * 2), ("gfx950", ["float8_e4m3fn"] * 2)],
    )
    def test_a_chip_of_which_only_dtypes_are_known(self, monkeypatch, architecture, names):
        properties = SimpleNamespace(gcnArchName=architecture)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        products = RocmDevice(0).scaled_products()
        assert len(products) == (4 if names else 0)
        assert not names or (*names, "tensor", "tensor") in products

    def test_a_cpu_has_none(self):
        assert accel.devices.CpuDevice().scaled_products() == frozenset()
