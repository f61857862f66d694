"""Every backend with every argument, alone and in pairs: it computes what was asked or refuses.

Generated from the specs and from the list of features: a new backend is in these tests at once, and
a new feature or argument fails them until a call that uses it is written here.
"""

import inspect
import itertools
import math

import pytest
import torch
from torch import Tensor

import accel
from accel import BackendError
from accel.attention import alibi, causal, documents, key_lengths, prefix, relative_bias, window
from accel.testing import assert_backward_stable
from accel_kernels.masks import RowIntervals
from accel_kernels.segmented_attention import FEATURES, SPECS
from accel_kernels.segmented_attention import request as make_request
from accel_kernels.segmented_attention.arguments import bias_of, mask_of
from accel_kernels.segmented_attention.call import Call, Dropout
from accel_kernels.segmented_attention.formula import whole_attention
from accel_kernels.spec import REFERENCE

OP = "segmented_attention"
SEED = 5
BATCH, LENGTH = 2, 7


def row_intervals(queries: int, keys: int) -> RowIntervals:
    low = torch.arange(queries, dtype=torch.int32).clamp(max=keys)
    return RowIntervals(torch.stack([low // 2, low]).view(1, 2, 1, queries))


# What a call must be to use each feature; masks and biases as functions of (heads, T, S).
USES: dict[str, dict] = {
    "mask: causal": {"mask": lambda h, t, s: causal()},
    "mask: window": {"mask": lambda h, t, s: window(3, 1)},
    "mask: sinks": {"mask": lambda h, t, s: window(2, sinks=1)},
    "mask: documents": {"mask": lambda h, t, s: documents([0, min(t, 3), t], [0, min(s, 2), s])},
    "mask: prefix": {"mask": lambda h, t, s: prefix(4)},
    "mask: key_lengths": {"mask": lambda h, t, s: key_lengths([5, 0])},
    "mask: rowintervals": {"mask": lambda h, t, s: row_intervals(t, s)},
    "mask: dense": {"mask": lambda h, t, s: torch.ones(h, t, s, dtype=torch.bool).triu(-1)},
    "structure with a tensor": {"mask": lambda h, t, s: causal() & torch.ones(t, s).bool()},
    "causal of unequal lengths": {"mask": lambda h, t, s: causal(), "keys": 9},
    "bias: dense": {"bias": lambda h, t, s: torch.linspace(-1, 1, h * t * s).view(1, h, t, s)},
    "bias: alibi": {"bias": lambda h, t, s: alibi(torch.linspace(0.1, 1, h))},
    "bias: relative": {"bias": lambda h, t, s: relative_bias(torch.linspace(-1, 1, 5).view(1, 5))},
    "gradient of bias": {"bias": lambda h, t, s: alibi(torch.ones(h)), "bias_grad": True},
    "softcap": {"softcap": 1.5},
    "dropout_p": {"dropout_p": 0.3, "dropout_seed": SEED},
    "segment_size": {"segment_size": 3},
    "scale not positive": {"scale": -0.5},
    "return_lse": {"return_lse": True},
    "grouped heads": {"key_heads": 2},
    "value head size": {"value_size": 24},
    "head size not contiguous": {"contiguous": False},
    "empty tensors": {"queries": 0},
}
OPTIONS = ("softcap", "dropout_p", "dropout_seed", "segment_size", "scale", "return_lse")


class Use:
    """A call that uses some features: its tensors and options."""

    def __init__(self, *features: str, dtype: torch.dtype = torch.float64) -> None:
        wanted: dict = {}
        masks = []
        for feature in features:
            use = USES[feature]
            masks += [use["mask"]] if "mask" in use else []
            wanted.update(use)
        heads, queries, keys = 4, wanted.get("queries", LENGTH), wanted.get("keys", LENGTH)
        key_heads, value_size = wanted.get("key_heads", heads), wanted.get("value_size", 16)
        shapes = ((heads, queries, 16), (key_heads, keys, 16), (key_heads, keys, value_size))
        generator = torch.Generator().manual_seed(0)
        self.tensors = [
            torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in shapes
        ]
        if not wanted.get("contiguous", True):
            self.tensors = [t.mT.contiguous().mT for t in self.tensors]
        self.options = {name: wanted[name] for name in OPTIONS if name in wanted}
        mask = None
        for make in masks:
            one = make(heads, queries, keys)
            mask = one if mask is None else mask_of(mask, False) & one
        if mask is not None:
            self.options["mask"] = mask
        makers = [USES[name]["bias"] for name in features if name.startswith("bias: ")]
        if "bias" in wanted:
            # A gradient may be wanted of any bias.
            bias = bias_of((makers or [wanted["bias"]])[0](heads, queries, keys))
            tensor = bias.tensor.to(dtype).requires_grad_("bias_grad" in wanted)
            self.options["bias"] = bias._replace(tensor=tensor) if bias.kind != "dense" else tensor

    @property
    def request(self):
        return make_request(*self.tensors, **self.options)

    def call(self) -> Call:
        """The same for the formula."""
        options = dict(self.options)
        scale = options.get("scale", 1 / math.sqrt(self.tensors[0].shape[3]))
        p = options.get("dropout_p", 0.0)
        return Call(
            mask_of(options.get("mask"), False),
            scale,
            options.get("softcap"),
            bias_of(options.get("bias")),
            Dropout(p, SEED) if p else None,
        )


def conflicting(a: str, b: str) -> bool:
    """A call has one bias."""
    kinds = {name for name in (a, b) if name.startswith("bias: ")}
    return len(kinds) > 1


def widest(spec) -> torch.dtype:
    order = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return next(dtype for dtype in order if dtype in spec.dtypes)


def computes(spec, use: Use) -> None:
    """Output and, if asked for, log-sum-exp are those of the formula."""

    def attention(*tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        result = accel.segmented_attention(*tensors, **use.options, backend=spec.name)
        return (result.out, result.lse) if use.options.get("return_lse") else result

    def formula(*tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out, lse = whole_attention(*tensors, use.call())
        return (out, lse) if use.options.get("return_lse") else out

    actual, expected = attention(*use.tensors), formula(*use.tensors)
    if use.tensors[0].dtype != torch.float64:
        assert_backward_stable(attention, *use.tensors, reference=formula, gradients=False)
        return
    if isinstance(actual, Tensor):
        actual, expected = (actual,), (expected,)
    for a, e in zip(actual, expected, strict=True):
        # Sums of a few terms of size 1 in float64.
        assert torch.allclose(a, e, rtol=0, atol=1e-12)


def refuses(spec, use: Use, missing: frozenset[str]) -> None:
    """The error names backend and features, and backends that can do it, which then do."""
    with pytest.raises(BackendError, match="cannot serve this call") as caught:
        accel.segmented_attention(*use.tensors, **use.options, backend=spec.name)
    text = str(caught.value)
    assert f"backend {spec.name!r}" in text
    for feature in missing:
        assert feature in text
    able = [one.name for one in accel.backends(OP) if not one.why_not(use.request)]
    assert REFERENCE in able
    assert f"these can: {', '.join(able)}" in text


def computes_or_refuses(spec, use: Use) -> None:
    reasons = spec.why_not(use.request)
    if reasons:
        refuses(spec, use, use.request.features - spec.features)
    else:
        computes(spec, use)


def test_each_feature_has_a_call_that_uses_it() -> None:
    """And a call uses nothing that is no feature."""
    assert set(USES) == FEATURES
    implied = {
        "mask: sinks": {"mask: window"},
        "causal of unequal lengths": {"mask: causal"},
        "gradient of bias": {"bias: alibi"},
        "structure with a tensor": {"mask: causal", "mask: dense"},
    }
    assert Use().request.features == frozenset()
    for feature in USES:
        assert Use(feature).request.features == {feature, *implied.get(feature, ())}


def test_calls_speak_of_no_other_features() -> None:
    for a, b in itertools.combinations(USES, 2):
        if conflicting(a, b):
            continue
        features = Use(a, b).request.features
        assert {a, b} <= features
        assert features <= FEATURES


def test_specs_speak_of_no_other_features() -> None:
    for spec in SPECS:
        assert spec.features <= FEATURES, spec.name
        assert spec.features or spec.name == REFERENCE


def test_each_argument_has_a_call_that_uses_it() -> None:
    arguments = set(inspect.signature(accel.segmented_attention).parameters)
    used = {name for use in USES for name in Use(use).options}
    # `is_causal` is short for a mask and decides nothing itself.
    assert arguments - used == {"query", "key", "value", "is_causal", "backend"}
    assert used <= arguments
    a, b = Use(), Use("mask: causal")
    assert make_request(*a.tensors, is_causal=True) == b.request


@pytest.mark.parametrize("feature", USES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_each_feature_alone(spec, feature) -> None:
    computes_or_refuses(spec, Use(feature, dtype=widest(spec)))


@pytest.mark.parametrize("feature", USES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_each_pair_of_features(spec, feature) -> None:
    for other in list(USES)[list(USES).index(feature) + 1 :]:
        if not conflicting(feature, other):
            computes_or_refuses(spec, Use(feature, other, dtype=widest(spec)))


@pytest.mark.parametrize("feature", sorted(FEATURES))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_reasons_on_its_own_device_are_the_missing_features(spec, feature) -> None:
    """Also of backends for devices that are not here."""
    devices = spec.devices or {"cpu"}
    request = Use(feature, dtype=widest(spec)).request
    for device in devices:
        reasons = spec.why_not(request._replace(device=device))
        lacking = request.features - spec.features
        named = [r for r in reasons if r.startswith("does not support ")]
        assert bool(named) == bool(lacking)
        for name in lacking:
            assert name in named[0]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_devices_dtypes_and_sizes(spec) -> None:
    plain = Use(dtype=widest(spec)).request
    here = plain._replace(device=min(spec.devices, default="cpu"))
    for device in ("cpu", "cuda", "npu", "xpu", "mps"):
        reasons = spec.why_not(here._replace(device=device))
        elsewhere = bool(spec.devices) and device not in spec.devices
        assert any(f"not on {device}" in reason for reason in reasons) == elsewhere
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2):
        reasons = spec.why_not(here._replace(dtype=dtype))
        name = str(dtype).removeprefix("torch.")
        assert any(f"not {name}" in reason for reason in reasons) == (dtype not in spec.dtypes)
    assert set(spec.limits) <= {name for name, _ in plain.sizes}
    for name, (least, most) in spec.limits.items():
        for size, fits in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
            reasons = spec.why_not(here._replace(sizes=((name, size),)))
            refused = f"needs {name} from {least} to {most}, not {size}" in reasons
            assert refused != fits


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "npu", "xpu"])
def test_there_is_always_an_alternative(device) -> None:
    """The reference takes everything that any other backend refuses, on every device."""
    reference = next(spec for spec in SPECS if spec.name == REFERENCE)
    everything = Use().request._replace(features=FEATURES)
    request = everything if device is None else everything._replace(device=device)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert reference.why_not(request._replace(dtype=dtype)) == []


WRONG: dict[str, list[tuple[object, type[Exception], str]]] = {
    "query": [
        (torch.zeros(1, 2, 3), ValueError, r"query must be \[B, H, T, D\]"),
        (None, TypeError, "query must be a tensor"),
        (torch.zeros(1, 2, 3, 4, dtype=torch.int32), TypeError, "query must be of a floating"),
    ],
    "key": [
        (torch.zeros(BATCH, 4, 7, 8, dtype=torch.float64), ValueError, "one head size"),
        (torch.zeros(BATCH, 3, 7, 16, dtype=torch.float64), ValueError, "key and value must agree"),
        (torch.zeros(BATCH, 4, 7, 16), TypeError, "query, key and value must have one dtype"),
    ],
    "value": [
        (torch.zeros(BATCH, 4, 6, 16, dtype=torch.float64), ValueError, "key and value must agree"),
        (torch.zeros(BATCH, 4, 7, 16, device="meta").double(), ValueError, "on one device"),
    ],
    "mask": [
        ("causal", TypeError, "a mask is one of causal, window"),
        (True, TypeError, "a mask is one of causal, window"),
        (torch.zeros(7, 7), TypeError, "a mask tensor is bool.*goes into bias="),
        (torch.ones(5, 7, dtype=torch.bool), ValueError, "T must be 1 or 7, not 5"),
        (key_lengths([1, 2, 3]), ValueError, "key_lengths has 3 lengths for a batch of 2"),
        (documents([0, 8]), ValueError, "cu_seqlens ends at 8, beyond the length 7"),
    ],
    "is_causal": [
        (1, TypeError, "is_causal must be True or False, not 1"),
        (None, TypeError, "is_causal must be True or False"),
    ],
    "scale": [
        (math.nan, ValueError, "scale must be finite"),
        (math.inf, ValueError, "scale must be finite"),
        (torch.tensor(1.0), TypeError, "scale must be a number.*multiply the query by a scale"),
        ("1", TypeError, "scale must be a number"),
    ],
    "dropout_p": [
        (1.0, ValueError, "dropout_p must be at least 0 and below 1, not 1.0"),
        (-0.1, ValueError, "dropout_p must be at least 0 and below 1, not -0.1"),
        (math.nan, ValueError, "dropout_p must be at least 0 and below 1, not nan"),
        ("0.1", TypeError, "dropout_p must be a number"),
    ],
    "dropout_seed": [
        (1.5, TypeError, "dropout_seed must be an integer"),
        (True, TypeError, "dropout_seed must be an integer"),
        (torch.zeros(2, dtype=torch.int64), TypeError, "dropout_seed must be an integer"),
    ],
    "softcap": [
        (0.0, ValueError, "softcap must be positive and finite, not 0.0"),
        (-1.0, ValueError, "softcap must be positive and finite, not -1.0"),
        (math.inf, ValueError, "softcap must be positive and finite, not inf"),
        ("2", TypeError, "softcap must be a number"),
    ],
    "bias": [
        (0.5, TypeError, "bias must be alibi"),
        (torch.zeros(7, 7, dtype=torch.bool), TypeError, "bias must be alibi.*goes into mask="),
        (torch.zeros(7), ValueError, r"a bias tensor is \[T, S\] to \[B, H, T, S\]"),
        (torch.zeros(5, 7), ValueError, "bias must broadcast to"),
        (torch.zeros(7, 7, device="meta"), ValueError, "bias must be on the query's device"),
        (alibi(torch.ones(3)), ValueError, "bias must have slopes"),
        (relative_bias(torch.ones(3, 5)), ValueError, "bias must have a table for 1 or 4 heads"),
    ],
    "segment_size": [
        (0, ValueError, "segment_size must be at least 1, not 0"),
        (1.5, TypeError, "segment_size must be an integer, not 1.5"),
        (True, TypeError, "segment_size must be an integer, not True"),
    ],
    "return_lse": [("yes", TypeError, "return_lse must be True or False, not 'yes'")],
    "backend": [("nosuch", ValueError, "no backend called 'nosuch'; there are: ")],
}


def test_each_argument_has_wrong_values() -> None:
    assert set(WRONG) == set(inspect.signature(accel.segmented_attention).parameters)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [(name, *wrong) for name, wrongs in WRONG.items() for wrong in wrongs],
    ids=lambda value: value if isinstance(value, str) and len(value) < 16 else None,
)
@pytest.mark.parametrize("backend", [None, *(spec.name for spec in SPECS)])
def test_a_wrong_value_is_named(name, given, error, message, backend) -> None:
    """By the same error whatever the backend."""
    use = Use()
    arguments = {
        **dict(zip(("query", "key", "value"), use.tensors, strict=True)),
        "backend": backend,
        name: given,
    }
    with pytest.raises(error, match=message):
        accel.segmented_attention(**arguments)
