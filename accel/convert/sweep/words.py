"""What a single word of a script or a configuration means: a tool, a variable, a device, a path."""

from __future__ import annotations

import re
from collections.abc import Iterator

from accel.convert.finding import Finding, Span
from accel.convert.sweep.text import Text
from accel.convert.tables.environment import Variable, variable

TOOLS = {
    "nvidia-smi": "`npu-smi info` shows devices, memory and load on Ascend.",
    "nvcc": "CUDA sources do not build for Ascend: see the findings of those sources.",
    "nsys": "msprof, or torch_npu.profiler, traces on Ascend.",
    "ncu": "msprof measures operators on Ascend.",
    "nvprof": "msprof traces on Ascend.",
    "cuda-memcheck": "mssanitizer checks Ascend C kernels.",
    "compute-sanitizer": "mssanitizer checks Ascend C kernels.",
    "cuda-gdb": "msdebug debugs Ascend C kernels.",
    "nvidia-docker": "Use docker with the Ascend Docker Runtime.",
    "nvidia-container-cli": "Use the Ascend Docker Runtime.",
    "nvidia-ctk": "Use the Ascend Docker Runtime.",
    "nvidia-xconfig": "It configures displays; nothing of the kind is needed.",
    "nvidia-modprobe": "Ascend's driver loads by itself.",
    "nvidia-persistenced": "Ascend's driver stays loaded.",
    "dcgmi": "npu-smi and NPU-Exporter watch devices on Ascend.",
}
_TOOL = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, TOOLS))})(?![\w-])")
_TOOL_PATH = re.compile(rf"(?:[\w./$\{{\}}-]*/)?({'|'.join(map(re.escape, TOOLS))})")
_READ = re.compile(r"\$\{?([A-Za-z_]\w*)")
_NAME_VALUE = re.compile(r"[\"']?([A-Za-z_]\w*)(?:=(.*?))?[\"']?", re.DOTALL)
_OPTION = re.compile(r"(-{1,2}[A-Za-z][\w-]*|[A-Za-z_][\w.]*)(?:=(.*))?", re.DOTALL)
_PLAIN_OPTION = re.compile(r"-{1,2}[A-Za-z][\w-]*")
_DEVICE = re.compile(r"cuda(?::(?:\d+|\$\{?\w+\}?))?|nccl|(?:cpu:gloo,)?cuda:nccl(?:,cpu:gloo)?")
_IMAGE = re.compile(r"(?:nvcr\.io/|nvidia/)[\w./-]*(?::[\w.-]+)?|[\w./-]+:[\w.-]*cuda[\w.-]*")
_TOOLKIT = re.compile(
    r"(?:/usr/local|/opt)/cuda[\w.-]*|/usr/(?:lib|include)[\w/.-]*(?:cuda|nvidia)"
)
_VENDOR_HOST = re.compile(r"(?:https?://)?[\w.-]*(?:nvidia\.com|nvidia\.github\.io|ngc\.nvidia)")
_FILE = re.compile(r".*(?:/|\\|\.\w{1,5}$)", re.DOTALL)
_IDENTIFIER = re.compile(r"[\w.:@%+-]*")
_QUOTES = "\"'"


def about_variable(
    text: Text, span: Span, known: Variable, value: str, rule: str = "ACC120"
) -> Finding:
    """What to do about a variable of the table that is set, or read, where no twin can be set."""
    if known.kind == "ignored":
        return text.keep(span, rule, f"only CUDA reads {known.name}: {known.note}", known.name)
    if known.name == "CUDA_VISIBLE_DEVICES" and value.strip(_QUOTES) in ("", "-1", "NoDevFiles"):
        advice = (
            "If it hides the devices, set ACCEL_DEVICE=cpu, which every device knows; otherwise "
            f"set {known.ascend} to the same."
        )
    elif known.kind == "twin":
        advice = f"Set {known.ascend} to the same beside it ({known.note})."
    else:
        advice = f"Set {known.ascend} for Ascend; {known.note}."
    return text.flag(
        span, rule, f"{known.name} is read by CUDA only; Ascend reads {known.ascend}", advice,
        subject=known.name,
    )  # fmt: skip


def about_word(
    text: Text, span: Span, before: str = "", *, is_command: bool = False, is_prose: bool = False
) -> Iterator[Finding]:
    """Say what one word is, if it holds anything of the platform's.

    Args:
        text: The file.
        span: The word.
        before: The word before it.
        is_command: Whether it is the name of a command.
        is_prose: Whether it stands in a text for people, where devices and addresses are words.
    """
    word = text.get(span)
    named = _TOOL_PATH.fullmatch(word) if is_command else None
    # Within `$(…)` any word may be a command.
    found = _TOOL.search(word) if not is_command or "$(" in word or "`" in word else None
    if named or found:
        name = named[1] if named else found[0] if found else ""
        yield text.flag(
            span, "ACC121", f"{name} knows NVIDIA devices only", TOOLS[name], subject=name
        )
        return
    if next(text.hits(span), None) is None:
        return
    bare = word.strip(_QUOTES + ",;")
    if is_prose and (_DEVICE.fullmatch(bare) or _VENDOR_HOST.match(bare)):
        yield text.keep(span, "ACC139", "a word of a text; none is ever changed")
        return
    yield _classed(text, span, bare, before)


def _classed(text: Text, span: Span, word: str, before: str) -> Finding:
    for name in _READ.findall(word):
        known = variable(name)
        if known:
            return about_variable(text, span, known, "$")
    pair = _NAME_VALUE.fullmatch(word)
    known = variable(pair[1]) if pair else None
    if pair and known:
        return about_variable(text, span, known, pair[2] if pair[2] is not None else "$")
    if _is_own(text, word):
        return text.keep(span, "ACC139", "a variable of the script's own; none is ever renamed")
    option = _OPTION.fullmatch(word)
    value = option[2] if option else None
    if _DEVICE.fullmatch((value if value is not None else word).strip(_QUOTES)):
        return about_device(text, span, (value or word).strip(_QUOTES))
    if before in ("--runtime", "--gpus") or word == "--runtime=nvidia":
        return about_runtime(text, span)
    return _other(text, span, word, value)


def _is_own(text: Text, word: str) -> bool:
    """Whether the platform's word is only in names of variables and in options that they hold."""
    rest = re.sub(r"\$\{?[A-Za-z_]\w*", "", word)
    rest = re.sub(r"^[A-Za-z_]\w*=", "", rest).strip(_QUOTES)
    return rest != word and (not text.speaks(rest) or _PLAIN_OPTION.fullmatch(rest) is not None)


def about_device(text: Text, span: Span, device: str, rule: str = "ACC122") -> Finding:
    """A device's or a backend's name as a value."""
    if "nccl" in device:
        advice = (
            "accel.dist_backend(name) takes it for this machine's backend: see where it is read."
        )
    else:
        advice = (
            "accel.device(name) takes it for the accelerator that is here: see that the program "
            "passes it on to that, and compares it with nothing."
        )
    return text.flag(span, rule, f"{device} is handed to a program", advice, subject=device)


def about_runtime(text: Text, span: Span) -> Finding:
    """A container's way to its devices."""
    return text.flag(
        span, "ACC125", "this gives a container NVIDIA's devices",
        "Use the Ascend Docker Runtime (--runtime=ascend, ASCEND_VISIBLE_DEVICES) or --device "
        "/dev/davinci0 and the driver's directories; huawei.com/Ascend910 in Kubernetes.",
        subject="container runtime",
    )  # fmt: skip


def about_image(text: Text, span: Span, image: str) -> Finding:
    """A container image with CUDA in it."""
    return text.flag(
        span, "ACC124", f"the image {image} holds CUDA",
        "Start from an image with CANN of the chip (quay.io/ascend/cann), then install torch for "
        "CPU and torch-npu of the same release.",
        effort="rewrite", subject=image.partition(":")[0],
    )  # fmt: skip


def _other(text: Text, span: Span, word: str, value: str | None) -> Finding:
    if _IMAGE.fullmatch(word) and not word.startswith("cuda:") and "//" not in word:
        return about_image(text, span, word)
    if _TOOLKIT.search(word):
        return text.flag(
            span, "ACC120", "a path of the CUDA toolkit",
            "It does no harm where it does not exist; on Ascend source CANN's set_env.sh.",
            subject="CUDA toolkit",
        )  # fmt: skip
    if _VENDOR_HOST.match(word):
        return text.flag(
            span, "ACC123", "something of NVIDIA's is fetched from here",
            "Leave it out on Ascend, or fetch the like of CANN.", subject="download",
        )  # fmt: skip
    if word.startswith("-") and (value is None or not text.speaks(value)):
        return text.keep(span, "ACC139", "an option of a program's own; none is ever renamed")
    if _FILE.match(word):
        return text.keep(span, "ACC139", "a path or an address; none is ever changed")
    if _IDENTIFIER.fullmatch(word) or (value is not None and not text.speaks(value)):
        return text.keep(span, "ACC139", "a name of the project's own; none is ever changed")
    return text.flag(
        span, "ACC138", "nothing is known of this use", "Read this line and decide.",
        subject=word[:40],
    )  # fmt: skip
