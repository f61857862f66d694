"""Words in strings: proof that a string names no device, or a flag."""

from __future__ import annotations

import ast
import re
from functools import cached_property

from accel.convert.module import Module
from accel.convert.rules.names_known import Known
from accel.convert.rules.names_sinks import Sink, Sinks
from accel.convert.rules.names_verdict import (
    DOCSTRING,
    KEY,
    OPTION,
    OWN_ATTRIBUTE,
    OWN_NAME,
    PATH,
    TEXT,
    Verdict,
    unknown,
)
from accel.convert.tokens import PATTERN

_DEVICE = re.compile(r"(?:cuda|npu|musa|mlu|nccl|hccl|mccl|cncl)(?::.*)?", re.DOTALL)
_IDENTIFIER = re.compile(r"-{0,2}[A-Za-z_][\w.-]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_FILE = re.compile(
    r"\.(?:py|pyi|pt|pth|ckpt|safetensors|bin|txt|md|rst|json|ya?ml|toml|cfg|ini|csv|tsv|log|pkl|"
    r"pickle|png|jpe?g|gif|svg|html?|npz|npy|onnx|zip|tar|gz|h5|db)$"
)
# The toolkit's own files and programs, and images that hold it.
_TOOLKIT = re.compile(
    r"local/cuda|lib(?:cud|nccl|nvrtc|cublas|cufft|nvToolsExt)|nvcc|nvidia-smi|nsys\b|nvidia/cuda|"
    r"dev/nvidia|driver/nvidia|cuda_home|cuda_path|\.so\b|\.dll$",
    re.IGNORECASE,
)
_KERNEL = re.compile(r"\.cuh?\b")
# What prose does not hold: code of several languages, commands, settings.
_CODE = re.compile(
    r"__global__|__device__|<<<|#include|torch\.cuda|\.cuda\(|\bimport \w|[;{}]|"
    r"\w\(\)|\.\w+\(|\w\(\w+, |\w\(['\"]|"
    r"(?:^|\s)-{1,2}\w|\b\w+=\S|^\s*[\w.]+ = |nvidia-smi|nvcc"
)
# A line that gives a setting the name of a device: YAML, INI, JSON, an environment file.
_SETTING = re.compile(
    r"^[ \t]*(?:- )?[\"']?[\w.-]+[\"']?[ \t]*[:=]\s*"
    r"[\"']?(?:cuda(?::\d+)?|nccl)[\"']?[ \t]*,?[ \t]*(?:#.*)?$",
    re.MULTILINE,
)
# The keys by which torch's dispatcher knows where an operator runs.
_DISPATCH = re.compile(r"(?:Autograd|Autocast|Sparse|SparseCsr|Quantized|Nested)*CUDA")
# How errors of CUDA and its libraries begin: programs look for these in messages.
_FAILURE = re.compile(r"(?:CUDA (?:error|out of memory)|CUDA(?:_ERROR)?: |CU(?:DNN|BLAS)_STATUS_)")
_WORDS = re.compile(r"[^\W\d_]{2,}")

_REASONS: dict[Sink, Verdict] = {
    "docstring": Verdict(
        DOCSTRING, "a docstring or a string that stands alone: it chooses nothing"
    ),
    "message": Verdict(TEXT, "a message for people: printed, logged or raised"),
    "help": Verdict(TEXT, "a help text or a description of an option"),
    "option": Verdict(OPTION, "the name of a command-line option: it is what users type"),
    "export": Verdict(OWN_NAME, "a name that this file exports"),
    "path": Verdict(PATH, "part of the name of a file or folder"),
    "annotation": Verdict(
        TEXT, "a type annotation in quotes: it does nothing when the program runs"
    ),
}
# As above, unless the text is a device's.
_NAMES: dict[Sink, Verdict] = {
    "table": Verdict(KEY, "an entry of a long table of names, none of which chooses a device"),
    "list": Verdict(KEY, "an entry of a list that names parts of this program"),
}
_ERROR = (
    "a text that is looked for in an error's message: on other devices the message has other words",
    "Catch the exception's class (torch.OutOfMemoryError for memory), or look for words that have "
    "no device in them, such as 'out of memory'.",
)
_SEARCHED = (
    "a text that another one is compared with or searched for: what it finds cannot be seen",
    "If the other text comes from a tool, a driver or an error of <CUDA>'s, other devices say it "
    "in other words.",
)
_CONFIGURATION = (
    "a text in which a setting is the name of a device or backend",
    "See who reads the text; a program that hands the value to accel.device takes it as it is.",
)
_COMMAND = (
    "a command or code in a string, which this converter does not read",
    "Convert it by hand; `npu-smi info` is Ascend's nvidia-smi.",
)


class Strings:
    """Judges the strings of a file."""

    def __init__(self, module: Module, known: Known) -> None:
        self._module = module
        self._known = known
        self._sinks = Sinks(module)

    def judge(self, node: ast.expr) -> Verdict:
        """What a string literal is, by where it goes and what it holds."""
        text = text_of(node)
        sink = self._sinks.of(node)
        if sink == "command":
            return unknown(*_COMMAND)
        if sink == "error":
            return unknown(*_ERROR)
        if sink in _REASONS and not (sink == "option" and _DEVICE.fullmatch(text)):
            return _REASONS[sink]
        if _DEVICE.fullmatch(text.strip()):
            return self._device(text.strip(), sink)
        if sink in _NAMES and _IDENTIFIER.fullmatch(text):
            return _NAMES[sink]
        if _KERNEL.search(text):
            return unknown(
                "a CUDA source, or what is compiled from one",
                "Other devices cannot run it: look for a way without it, or write one for them.",
            )
        if _TOOLKIT.search(text):
            return unknown(
                "a file or program of CUDA's own installation",
                "Other devices have theirs elsewhere; run this on CUDA only.",
            )
        return self._by_name(text, sink) or self._by_content(text, sink)

    def _device(self, text: str, sink: Sink) -> Verdict:
        if sink == "option":
            return _REASONS["option"]
        if sink == "key":
            return unknown(
                f"{text!r} is the key of a dictionary or an index: other devices need an entry",
                "Add the entry for the other devices, or use one key for all accelerators.",
            )
        if sink in ("attribute", "default", "comparison"):
            return unknown(
                f"{text!r} is used as a {sink} in a way that no rule knows",
                "If it means the device, use the device that is there; if it is a name of this "
                "program's own, it may stay.",
            )
        return unknown(
            f"{text!r} may be a device, and it cannot be seen where it goes",
            "If it ends as a device, write the device that is there instead; if it is only a name, "
            "it may stay.",
        )

    def _by_name(self, text: str, sink: Sink) -> Verdict | None:
        name = text.lstrip("-").replace("-", "_")
        if not _IDENTIFIER.fullmatch(text):
            return None
        if sink == "key":
            return Verdict(KEY, f"{text!r} is a key of this program's own")
        if self._known.has_option(name):
            return Verdict(OPTION, f"{text!r} is the name of a command-line option of this tree")
        if self._is_defined(name):
            return Verdict(
                OWN_ATTRIBUTE, f"{text!r} is the name of something that this tree defines"
            )
        if self._known.has_key(text):
            return Verdict(KEY, f"{text!r} is a key that this file writes")
        if text in self._choices:
            return Verdict(KEY, f"{text!r} is a choice that this file both makes and compares with")
        return None

    def _is_defined(self, name: str) -> bool:
        """Whether a string is the name of something of the tree's, and of nothing of a vendor's."""
        owner, _, leaf = name.rpartition(".")
        if PATTERN.fullmatch(leaf) or name.startswith("torch."):
            return False  # `cudart` may be a library, whatever else has that name
        return self._known.has_attribute(leaf) and (not owner or self._known.has_prefix(owner))

    @cached_property
    def _choices(self) -> frozenset[str]:
        """Values that this file both writes and compares with."""
        written: set[str] = set()
        compared: set[str] = set()
        for node in self._module.all(ast.Constant):
            if isinstance(node.value, str):
                parent = self._module.parent(node)
                is_compared = isinstance(parent, (ast.Compare, ast.MatchValue))
                (compared if is_compared else written).add(node.value)
        return frozenset(written & compared)

    def _by_content(self, text: str, sink: Sink) -> Verdict:
        stripped = text.strip()
        if _FAILURE.match(stripped):
            return unknown(*_ERROR)
        if _DISPATCH.fullmatch(stripped):
            return unknown(
                f"{stripped!r} may be a key of torch's dispatcher, for operators on <CUDA> alone",
                "Register it for CompositeExplicitAutograd, or for the other devices as well.",
            )
        if stripped.startswith("torch."):
            return unknown(
                f"the string {stripped!r} names something of torch's",
                "Look at what reads the string: it may import or call what it names.",
            )
        if _URL.match(stripped):
            return Verdict(PATH, "an address: its host and path name no device")
        blank = re.search(r"\s", stripped)
        if not blank and ("/" in stripped or "\\" in stripped or _FILE.search(stripped)):
            return Verdict(
                PATH, "a path or file name: no device is spelled with a slash or an ending"
            )
        if _SETTING.search(text):
            return unknown(*_CONFIGURATION)
        if sink in ("comparison", "search"):
            return unknown(*_SEARCHED)
        if blank and not _CODE.search(stripped) and len(_WORDS.findall(stripped)) >= 2:
            return Verdict(TEXT, "words for people: no device or option is spelled with blanks")
        if blank or _CODE.search(stripped):
            return unknown(*_COMMAND)
        shown = stripped if len(stripped) <= 40 else f"{stripped[:37]}..."
        return unknown(
            f"the string {shown!r} names something that this tree does not define",
            "If it is a name of this program's own, it may stay; if it selects something of "
            "<CUDA>'s, choose by the device that is there.",
        )


def text_of(node: ast.expr) -> str:
    """A literal's text; each field of an f-string as one letter."""
    if isinstance(node, ast.Constant):
        value = node.value
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            text_of(part) if isinstance(part, ast.Constant) else "x" for part in node.values
        )
    return ""
