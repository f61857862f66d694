"""ACC007 to ACC009: devices given by their number, and those of DistributedDataParallel."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow import is_device, is_device_string, is_tensor_or_module, may_be_none
from accel.convert.flow.positions import named_device
from accel.convert.flow.showing import is_moved, is_shown, names_value
from accel.convert.module import Module
from accel.convert.nodes import by_keyword, is_none, terminal_name
from accel.convert.rule import Example, Rule
from accel.convert.rules.devices_spelling import (
    Piece,
    Place,
    converted,
    device_arguments,
    get_device,
    is_get_device,
    is_int,
    named_index,
    place_of,
)
from accel.convert.rules.devices_spelling import call as call_for

_T = "import torch\n"
_A = "import torch\nimport accel\n"
_DDP = "from torch.nn.parallel import DistributedDataParallel as DDP\n"

RULES = (
    Rule(
        id="ACC007",
        name="bare-int-device",
        title="A device given as a number: x.to(rank)",
        why="A bare number means the accelerator's device of that number, and raises where there "
        "is none. `accel.device(rank)` is the same device, and the CPU on a CPU.",
        ascend="`x.to(0)` failed in some versions of torch_npu; `accel.device(0)` does not.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\ndef main(rank, model):\n    model = model.to(rank)\n",
                _A + "\ndef main(rank, model):\n    model = model.to(accel.device(rank))\n",
            ),
            Example(
                _T + "\nclass Trainer:\n    def __init__(self, gpu_id: int):\n"
                "        self.gpu_id = gpu_id\n\n    def put(self, x):\n"
                "        return x.to(self.gpu_id)\n\nx = torch.zeros(1, device=0)\n",
                _A + "\nclass Trainer:\n    def __init__(self, gpu_id: int):\n"
                "        self.gpu_id = gpu_id\n\n    def put(self, x):\n"
                "        return x.to(accel.device(self.gpu_id))\n\n"
                "x = torch.zeros(1, device=accel.device(0))\n",
            ),
            Example(
                _T + "\nx = torch.ones(1).to(torch.cuda.current_device())\n",
                _A + "\nx = torch.ones(1).to(accel.device())\n",
            ),
        ),
        kept=(
            _T + "\nx = x.to(other)\n",
            _T + "\nx = x.to(torch.float16)\n",
            _T + "\nx = x.to(device)\n",
            "import pint\n\nlength.to('cm')\n",
            _T + "\ndef f(x, gpu=None):\n    return x.to(gpu)\n",
            _T + "\nparser.add_argument('--gpu', type=str)\nx = x.to(args.gpu)\n",
            "def move(robot):\n    robot.to(0)\n",
            "from transformers import pipeline\n\nask = pipeline('fill', device=0)\n",
            _T + "\ncap = open_camera(device=0)\n",
            _T + "\nclass Arm:\n    def to(self, angle):\n        self.angle = angle\n\n"
            "def sweep(arms):\n    for arm in arms:\n        arm.to(90)\n        arm.to(1)\n",
            _T + "\ndef go(arm, tween):\n    arm.to(90)\n    tween.to(100)\n    arm.to(3)\n",
            _T + "\ndef f(x, rankings, low_rank, lora_rank):\n"
            "    return x.to(rankings), x.to(low_rank), x.to(lora_rank)\n",
            _T + "from cfg import FRANKA_DTYPE, rank_dtype\n\n"
            "y = x.to(rank_dtype), x.to(FRANKA_DTYPE)\n",
            _T + "\ntry:\n    x = torch.ones(1).to(0)\nexcept Exception:\n    x = None\n",
        ),
    ),
    Rule(
        id="ACC008",
        name="ddp-devices",
        title="The device_ids and output_device of DistributedDataParallel",
        why="On a CPU they must be None, on an accelerator the process's own device: "
        "`accel.ddp_device_ids(rank)` and `accel.ddp_output_device(rank)` are.",
        ascend="They are the same numbers.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + _DDP + "\nm = DDP(m, device_ids=[args.gpu], output_device=args.gpu)\n",
                "import torch\nimport accel\n" + _DDP + "\n"
                "m = DDP(m, device_ids=accel.ddp_device_ids(args.gpu), "
                "output_device=accel.ddp_output_device(args.gpu))\n",
            ),
            Example(
                _T + "\nm = torch.nn.parallel.DistributedDataParallel(\n    m,\n"
                "    device_ids=[rank] if use_cuda else None,\n)\n",
                _A + "\nm = torch.nn.parallel.DistributedDataParallel(\n    m,\n"
                "    device_ids=accel.ddp_device_ids(rank) if use_cuda else None,\n)\n",
            ),
            Example(
                _T + _DDP + "\nm = DDP(m, device_ids=[r % 2], output_device=r % 2)\n",
                _A + _DDP + "\nm = DDP(m, device_ids=accel.ddp_device_ids(r % 2), "
                "output_device=accel.ddp_output_device(r % 2))\n",
            ),
        ),
        kept=(
            _T + "\nm = torch.nn.DataParallel(m, device_ids=[0])\n",
            _T + _DDP + "\nm = DDP(m, device_ids=None)\n",
            _T + _DDP + "\nm = DDP(m, device_ids=ids)\n",
            _T + _DDP + "\nm = DDP(m, device_ids=[0, 1])\n",
            _T + "\nrun(device_ids=[rank])\n",
            _T + _DDP + "\nm = DDP(m, device_ids=ids, output_device=gpu)\n",
            _T + _DDP + "\nm = DDP(m, output_device=gpu)\n",
        ),
    ),
)
_DDP_NAMES = frozenset(
    {
        "torch.nn.parallel.DistributedDataParallel",
        "torch.nn.parallel.distributed.DistributedDataParallel",
        "torch.distributed.barrier",
    }
)
_LARGEST = 63  # the highest number that a lone literal is taken for a device's
_HELPERS = {"device_ids": "ddp_device_ids", "output_device": "ddp_output_device"}


def find(module: Module) -> Iterator[Finding]:
    """Numbers where devices are taken."""
    for call in module.all(ast.Call):
        name = module.qualified(call.func) or ""
        if name in _DDP_NAMES:
            yield from _distributed(module, call)
        elif name == "torch.device":
            if len(call.args) == 1 and not call.keywords and _is_number(module, call.args[0]):
                yield from _whole(module, call, call.args[0])
        else:
            place = _device_argument(module, call, name)
            if place is not None and _is_number(module, place):
                yield from _argument(module, call, place)


def _device_argument(module: Module, call: ast.Call, name: str) -> ast.expr | None:
    """What a call that makes or moves tensors takes as a device."""
    word = by_keyword(call, "device")
    is_method = isinstance(call.func, ast.Attribute)
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("to", "to_empty"):
        if not _has_torch(module) or is_tensor_or_module(module, call.func.value) is False:
            return None
        first = call.args[0] if call.args and call.func.attr == "to" else None
        return word if word is not None else first
    if name.startswith("torch.") and is_method:
        return word
    if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("new_"):
        return word
    if name.endswith((".FullyShardedDataParallel", ".FSDP")):
        return by_keyword(call, "device_id")
    return None


def _argument(module: Module, call: ast.Call, place: ast.expr) -> Iterator[Finding]:
    """The number that a call is given, where what it is called on has devices."""
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr != "to":
        yield from _whole(module, place, place)
        return
    receiver = func.value
    says_device = named_index(place) or isinstance(place, ast.Call) or _is_named_device(place)
    is_small = not isinstance(place, ast.Constant) or int(str(place.value)) <= _LARGEST
    is_named = names_value(receiver)
    if "to" in module.project.methods:  # it may be one of the tree's own
        is_likely = is_named and says_device
    else:
        is_likely = says_device or is_named or is_moved(module, call) or bool(call.keywords)
    if is_shown(module, receiver) or (is_likely and is_small):
        yield from _whole(module, place, place)
    elif is_small:
        yield module.flag(
            place,
            "ACC007",
            f"{module.text(receiver)} may be a tensor or module, and the number its device.",
            "If it is, write accel.device(number); if not, add `# accel: keep`.",
        )


def _is_named_device(node: ast.expr) -> bool:
    """Whether a variable that is a number is called a device."""
    return named_device(terminal_name(node))


def _has_torch(module: Module) -> bool:
    names = [alias.name for node in module.all(ast.Import) for alias in node.names]
    names += [node.module or "" for node in module.all(ast.ImportFrom)]
    return any(name.partition(".")[0] == "torch" for name in names)


def _is_number(module: Module, node: ast.expr) -> bool:
    """Whether an expression is the number of a device."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) and not isinstance(node.value, bool)
    if isinstance(node, ast.Call):
        if is_get_device(module, node):
            return True
        return module.qualified(node.func) == "torch.cuda.current_device"
    if is_int(module, node):
        return True
    if not named_index(node):
        return False
    return is_device(module, node) is not True and _is_given(module, node)


def _is_given(module: Module, node: ast.expr) -> bool:
    """Whether a number is none of None, which `to` takes for no device at all."""
    if not may_be_none(module, node):
        return True
    wanted = f"{module.text(node)} is not None"
    inner: ast.AST = node
    for outer in module.ancestors(node):
        if isinstance(outer, (ast.If, ast.IfExp)) and wanted in module.text(outer.test):
            body = outer.body if isinstance(outer.body, list) else [outer.body]
            return inner in body
        inner = outer
    return False


def _whole(module: Module, node: ast.expr, number: ast.expr) -> Iterator[Finding]:
    is_current = isinstance(number, ast.Call) and "current_device" in module.text(number.func)
    message = "A number means the device of that number here."
    if is_get_device(module, number):
        parts = get_device(module, number)
        yield converted(module, node, "ACC007", message, *parts, imports=frozenset())
        return
    called = module.target.call("device", *(() if is_current else (number,)))
    if called is not None and _text(module, called) != module.text(node):
        yield converted(module, node, "ACC007", message, *called)


def _text(module: Module, parts: tuple[Piece, ...]) -> str:
    texts = []
    for part in parts:
        span = module.span(part) if isinstance(part, ast.AST) else part
        texts.append(span if isinstance(span, str) else module.source.text(span))
    return "".join(texts)


def _distributed(module: Module, call: ast.Call) -> Iterator[Finding]:
    words = {word.arg: word for word in call.keywords if word.arg}
    ids = words.get("device_ids")
    for name, helper in _HELPERS.items():
        word = words.get(name)
        # One without the other is refused by torch: they must stay of one kind.
        if word is None or ids is None or not _ranks(ids.value):
            continue
        branches = [word.value]
        if isinstance(word.value, ast.IfExp):
            if "accelerator" in module.text(word.value.test):
                continue  # it is asked already
            branches = [word.value.body, word.value.orelse]
        for branch in branches:
            rank = _rank(branch, name)
            parts = _helped(module, helper, rank) if rank is not None else None
            if parts is not None:
                message = "It is None on a CPU, and the process's own device elsewhere."
                yield converted(module, branch, "ACC008", message, *parts)


def _helped(module: Module, helper: str, rank: ast.expr) -> tuple[Piece, ...] | None:
    """The call of a helper: for a device, with its number."""
    named, number = rank, None
    if isinstance(rank, ast.Call) and module.qualified(rank.func) == "torch.device":
        first, number = device_arguments(rank)
        named = rank if first is None else first
    place = place_of(module, named)
    if place is None:
        return module.target.call(helper, rank)
    return call_for(module, helper, Place((number,)) if number is not None else place)


def _ranks(node: ast.expr) -> bool:
    """Whether `device_ids` is `[rank]`, perhaps under a condition."""
    branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    return any(_rank(branch, "device_ids") is not None for branch in branches)


def _rank(node: ast.expr, word: str) -> ast.expr | None:
    """The number within `[rank]`, or of `output_device`."""
    if word == "device_ids":
        if not isinstance(node, ast.List) or len(node.elts) != 1:
            return None
        first = node.elts[0]
        return None if is_none(first) else first
    if isinstance(node, ast.Constant) and not isinstance(node.value, int):
        return node if is_device_string(node.value) else None
    return node
