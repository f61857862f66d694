"""What a contrastive loss is asked, what it refuses, and which kernel would serve it."""

import math

import pytest
import torch

from accel_kernels.contrastive_loss import FEATURES, OPERATION, SPECS, request
from accel_kernels.contrastive_loss.pairing import Guide, Pairing
from tests.kernels.contrastive_cases import CASES, Case, draw

X, Y = torch.zeros(4, 8), torch.zeros(4, 8)
SAMPLES = torch.arange(4)
PAIRING = Pairing(SAMPLES, SAMPLES)
GUIDE = Guide(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4), torch.zeros(4))

WRONG = {
    "kind": (ValueError, "kind must be one of softmax, sigmoid, not 'hinge'", {"kind": "hinge"}),
    "x is a list": (TypeError, "x must be a tensor of embeddings, not list", {"x": [1.0]}),
    "x is int": (TypeError, "x must be one of .* not torch.int64", {"x": SAMPLES[:, None]}),
    "x is flat": (ValueError, r"x must be \[rows, dim\], .* not \[4\]", {"x": torch.zeros(4)}),
    "dtypes": (TypeError, "one dtype, not torch.float32 and torch.float64", {"y": Y.double()}),
    "devices": (ValueError, "one device, not cpu and meta", {"y": Y.to("meta")}),
    "depths": (ValueError, r"agree in D, but are \[4, 8\] and \[4, 7\]", {"y": Y[:, :7]}),
    "rows": (ValueError, "there are 4 and 3 rows: give a Pairing", {"y": Y[:3], "pairing": None}),
    "scale's shape": (ValueError, r"scale must be .* of shape \[\]", {"scale": torch.ones(1)}),
    "scale's dtype": (ValueError, "not torch.int64", {"scale": torch.tensor(1)}),
    "scale is a word": (TypeError, r"a tensor \[\] or a number, not str", {"scale": "big"}),
    "scale is NaN": (ValueError, "scale must be finite, not nan", {"scale": math.nan}),
    "scale elsewhere": (ValueError, "scale is on meta", {"scale": torch.ones((), device="meta")}),
    "bias of softmax": (ValueError, "does not depend on a bias", {"bias": 0.0}),
    "bias is infinite": (ValueError, "bias must be finite", {"bias": math.inf, "kind": "sigmoid"}),
    "pairing": (TypeError, "pairing must be a Pairing or None, not tuple", {"pairing": (1, 2)}),
    "samples short": (
        ValueError, r"y_sample must be \[4\], .* not \[3\]",
        {"pairing": PAIRING._replace(y_sample=SAMPLES[:3])},
    ),
    "samples int32": (
        TypeError, "x_sample must be of torch.int64, not torch.int32",
        {"pairing": PAIRING._replace(x_sample=SAMPLES.int())},
    ),
    "samples elsewhere": (
        ValueError, "x_sample is on meta, the rows on cpu",
        {"pairing": PAIRING._replace(x_sample=SAMPLES.to("meta"))},
    ),
    "samples missing": (
        TypeError, "x_sample must be a tensor", {"pairing": PAIRING._replace(x_sample=None)},
    ),
    "one group": (
        ValueError, "for both sides or neither", {"pairing": PAIRING._replace(x_group=SAMPLES)},
    ),
    "duplicates": (
        ValueError, "one of positive, ignore, negative, not 'drop'",
        {"pairing": PAIRING._replace(duplicates="drop")},
    ),
    "hardness": (ValueError, "at least 0, not -1", {"pairing": PAIRING._replace(hardness=-1)}),
    "hardness is a word": (
        TypeError, "hardness must be a number", {"pairing": PAIRING._replace(hardness="very")},
    ),
    "guide": (TypeError, "guide must be a Guide", {"pairing": PAIRING._replace(guide=X)}),
    "guide's rows": (
        ValueError, r"guide.y must be \[4, E\]",
        {"pairing": PAIRING._replace(guide=GUIDE._replace(y=torch.zeros(3, 3)))},
    ),
    "guide's dtype": (
        ValueError, "of torch.float64",
        {"pairing": PAIRING._replace(guide=GUIDE._replace(x=torch.zeros(4, 3).double()))},
    ),
    "guide's device": (
        ValueError, "guide.x is on meta",
        {"pairing": PAIRING._replace(guide=GUIDE._replace(x=GUIDE.x.to("meta")))},
    ),
    "guide's depth": (
        ValueError, "must agree in E, not 3 and 2",
        {"pairing": PAIRING._replace(guide=GUIDE._replace(y=torch.zeros(4, 2)))},
    ),
    "guide's threshold": (
        ValueError, r"guide.x_threshold must be \[4\]",
        {"pairing": PAIRING._replace(guide=GUIDE._replace(x_threshold=torch.zeros(2)))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_has_one_error_that_says_what_was_given(name) -> None:
    kind, message, change = WRONG[name]
    arguments = {"x": X, "y": Y, "scale": 1.0, "pairing": PAIRING, **change}
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(kind, match=message):
        request(x, y, **arguments)


def test_features_say_what_a_call_uses() -> None:
    groups = {"x_group": SAMPLES, "y_group": SAMPLES}
    for pairing, features in (
        (None, set()),
        (PAIRING, set()),
        (PAIRING._replace(**groups), {"groups"}),
        (PAIRING._replace(guide=GUIDE), {"guide"}),
        (PAIRING._replace(hardness=0.5), {"hardness"}),
        (PAIRING._replace(hardness=1, guide=GUIDE, **groups), {"hardness", "guide", "groups"}),
    ):
        assert request(X, Y, scale=1.0, pairing=pairing).features == {"softmax", *features}
    found = request(X[:0], Y[:0], scale=2, bias=-1.0, kind="sigmoid")
    assert found.features == {"sigmoid", "empty"} <= FEATURES
    assert dict(request(X, Y[:, :8], scale=1.0).sizes) == {"rows": 4, "columns": 4, "depth": 8}


@pytest.mark.parametrize("which", range(4))
def test_any_input_may_want_a_gradient(which) -> None:
    given = [X.clone(), Y.clone(), torch.tensor(1.0), torch.tensor(0.0)]
    given[which].requires_grad_()
    x, y, scale, bias = given
    assert request(x, y, scale=scale, bias=bias, kind="sigmoid").needs_grad
    with torch.no_grad():
        assert not request(x, y, scale=scale, bias=bias, kind="sigmoid").needs_grad


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_allowed_and_served_on_the_cpu(case: Case) -> None:
    inputs = draw(case, torch.float32)
    asked = request(inputs.x, inputs.y, scale=inputs.scale, pairing=inputs.pairing)
    able = {spec.name for spec in SPECS if not spec.why_not(asked)}
    assert {"cpu", "reference"} <= able


def test_specs() -> None:
    """None but those for CPUs is called proven; float64 is for those that have it."""
    assert OPERATION.name == "contrastive_loss"
    assert OPERATION.specs is SPECS
    for spec in SPECS:
        assert spec.op == OPERATION.name
        assert spec.proven_on <= {"cpu"}
        assert spec.features <= FEATURES
    by_name = {spec.name: spec for spec in SPECS}
    assert by_name["triton"].requires == ("triton",)
    assert not by_name["triton"].proven_on
    assert "cpu" not in by_name["triton"].devices
    asked = request(X.double(), Y.double(), scale=1.0)._replace(device="npu")
    assert by_name["npu"].why_not(asked)[0].endswith("not float64")
