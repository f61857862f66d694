"""Each reference has its operator's parameters, as torch_npu 2.13.0 declares them."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from accel_kernels.vendor.npu import REFERENCES

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    line.split("(")[0]: line
    for line in (ROOT / "tests/data/npu_schemas.txt").read_text().splitlines()
}


def test_each_reference_has_a_schema_and_each_schema_a_reference() -> None:
    assert sorted(SCHEMAS) == sorted(REFERENCES)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_parameters_are_those_of_the_schema(name) -> None:
    schema = torch._C.parse_schema(SCHEMAS[name])
    declared = [(a.name, a.kwarg_only, a.has_default_value()) for a in schema.arguments]
    parameters = inspect.signature(REFERENCES[name]).parameters.values()
    assert declared == [
        (p.name, p.kind is p.KEYWORD_ONLY, p.default is not p.empty) for p in parameters
    ]
    for argument, parameter in zip(schema.arguments, parameters, strict=True):
        if argument.has_default_value():
            assert argument.default_value == parameter.default, argument.name


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_each_reference_says_what_it_computes(name) -> None:
    assert REFERENCES[name].__doc__


def test_the_references_import_nothing_of_a_vendor_or_of_accel() -> None:
    code = (
        "import sys, accel_kernels.vendor.npu\n"
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('accel', 'torch_npu')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "kernels"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        check=True,
    )
    assert result.stdout.strip() == "[]"
