"""ACC130 and ACC131 in C, C++, CUDA and Cython: what there is, and what of it Python can call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from accel.convert.finding import Finding, Span
from accel.convert.sweep.text import Text
from accel.convert.wording import listed

# Comments and strings are blanked first, so that what is found is code.
_NOISE = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEVICE_CODE = re.compile(r"__global__|<<<")
_KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(?:static\s+|inline\s+)*void\s+"
    r"(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)"
)
_LAUNCH = re.compile(r"([\w:]+)\s*(?:<[^<>;{}]*>)?\s*<<<")
_BINDING = re.compile(r"""\bm\.(?:def|impl)\s*\(\s*"([\w:]+)""")
_MODULE = re.compile(r"\b(?:PYBIND11_MODULE|TORCH_LIBRARY(?:_IMPL|_FRAGMENT)?)\s*\(\s*(\w+)")
_TORCH_CALL = re.compile(r"torch::(?:kCUDA|cuda)|at::(?:kCUDA|cuda)|c10::cuda|DeviceType::CUDA")
_RUNTIME = re.compile(
    r"\bcuda[A-Z]\w+|\bcu(?:blas|dnn|fft|rand|sparse|solver)\w*|\bnccl[A-Z]\w+|<<<|\bCUDA_\w+"
)
_INCLUDE = re.compile(
    r"#\s*include\s*[<\"]([\w./]*(?:cuda|cudnn|cublas|nccl|THC|cub/)[\w./]*)[>\"]"
)
_SHOWN = 8  # names that a message lists
# In the message of what is CUDA's, and yet stops nothing: it is optional, or has a plain version.
WITHOUT = "the program runs without it"


@dataclass(frozen=True)
class Native:
    """What a source holds.

    Attributes:
        kernels: Functions that run on the device.
        launched: Kernels that are started here.
        bindings: What Python can call, by name.
        module: The name of the module or library that they are in; "" if there is none.
        includes: Headers of CUDA's.
        is_torch: It names CUDA through torch's own C++ interface.
        is_runtime: It calls CUDA's runtime or libraries.
    """

    kernels: tuple[str, ...]
    launched: tuple[str, ...]
    bindings: tuple[str, ...]
    module: str
    includes: tuple[str, ...]
    is_torch: bool
    is_runtime: bool


def describe(chars: str) -> Native:
    """Read a source as far as names go."""
    code = _NOISE.sub(_blank, chars)
    plain = _COMMENTS.sub(_blank, chars)  # strings stay
    modules = _MODULE.findall(plain)
    return Native(
        kernels=_unique(_KERNEL.findall(code)),
        launched=_unique(_LAUNCH.findall(code)),
        bindings=_unique(_BINDING.findall(plain)),
        module=modules[0] if modules else "",
        includes=_unique(_INCLUDE.findall(plain)),
        is_torch=_TORCH_CALL.search(code) is not None,
        is_runtime=_RUNTIME.search(code) is not None,
    )


def find(text: Text) -> Iterator[Finding]:
    """One finding for the whole file, or none where nothing of the platform's is in it."""
    if next(text.hits(), None) is None and "__global__" not in text.chars:
        return
    line = text.line_of(_telling(text))
    snippet = text.data[slice(*text.line_span(line))].decode("utf-8", "replace").strip()
    for finding in _about(text):
        yield replace(finding, line=line, column=1, snippet=snippet)


def _telling(text: Text) -> int:
    """The place that shows best what a source is about."""
    code = _NOISE.sub(_blank, text.chars)
    plain = _COMMENTS.sub(_blank, text.chars)
    for pattern, chars in (
        (_DEVICE_CODE, code),
        (_RUNTIME, code),
        (_TORCH_CALL, code),
        (_INCLUDE, plain),
    ):
        match = pattern.search(chars)
        if match:
            return match.start()
    hits = list(text.hits())
    return next((h for h in hits if chars[h.span.start] != " "), hits[0]).span.start


def _about(text: Text) -> Iterator[Finding]:
    whole = Span(0, len(text.chars))
    native = describe(text.chars)
    if native.kernels:
        yield _kernels(text, whole, native)
    elif native.is_runtime or native.includes:
        yield text.flag(
            whole, "ACC131", f"host code that uses CUDA{_bound(native)}",
            "Write it against torch's C++ interface without a device of its own, or keep it for "
            "CUDA and choose a plain torch version elsewhere; torch_npu.utils.cpp_extension."
            "NpuExtension builds C++ for Ascend.",
            effort="rewrite", blocker=bool(native.bindings), subject=_subject(text, native),
        )  # fmt: skip
    elif native.is_torch:
        yield text.flag(
            whole, "ACC131", f"C++ that names CUDA through torch{_bound(native)}",
            "Take the device of the tensors that come in, or at::getAccelerator().",
            subject=text.path,
        )  # fmt: skip
    elif native.bindings:
        yield text.flag(
            whole, "ACC131", f"C++ that dispatches to CUDA code{_bound(native)}",
            "It goes with the CUDA sources that it calls: see their findings.",
            effort="rewrite", subject=text.path,
        )  # fmt: skip
    else:
        yield from _names(text, whole)


def _kernels(text: Text, whole: Span, native: Native) -> Finding:
    count = len(native.kernels)
    plural = "" if count == 1 else "s"
    names = listed(native.kernels, _SHOWN)
    return text.flag(
        whole, "ACC130", f"{count} CUDA kernel{plural}: {names}{_bound(native)}",
        "Does not run on Ascend. Call a plain torch version where there is one (look for `ref` or "
        "`reference` beside it), or write it with torch operators, in Triton, or in Ascend C.",
        effort="rewrite", blocker=True, subject=f"CUDA kernel{plural} {names}",
    )  # fmt: skip


def _subject(text: Text, native: Native) -> str:
    return f"CUDA extension {listed(native.bindings, _SHOWN)}" if native.bindings else text.path


def _bound(native: Native) -> str:
    if not native.bindings:
        return ""
    of = f" of {native.module}" if native.module not in ("", "TORCH_EXTENSION_NAME") else ""
    return f"; called from Python as {listed(native.bindings, _SHOWN)}{of}"


def _names(text: Text, whole: Span) -> Iterator[Finding]:
    """A source with such words in comments, declarations and names only."""
    lines = sorted({hit.line for hit in text.hits()})
    code = [line for line in lines if not _is_comment(text.get(text.line_span(line)))]
    if not code:
        yield text.keep(whole, "ACC139", "comments; none is ever changed")
        return
    yield text.flag(
        whole, "ACC131", "names of CUDA code in a source that holds none itself",
        "It goes with the CUDA sources that it names: see their findings.", subject=text.path,
    )  # fmt: skip


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("//", "*", "/*", "# "))


def _unique(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])
