"""ACC030: `torch.cuda.is_available()` before something that only CUDA has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from accel.convert.finding import Finding, Span
from accel.convert.flow import sinks
from accel.convert.module import Module
from accel.convert.rule import Example, Rule
from accel.convert.rules import devices_strings
from accel.convert.rules.guards_branches import ascend_branch
from accel.convert.rules.guards_content import (
    GUARDS,
    asks_for_cuda,
    content,
    guarded,
    guarded_after,
    only_switches,
)
from accel.convert.rules.guards_counts import decides

_T = "import torch\n"
RULES = (
    Rule(
        id="ACC030",
        name="cuda-only-guard",
        title="A torch.cuda.is_available() before what only CUDA has",
        why="A guard before DataParallel, a custom kernel or nvidia-smi asks for CUDA and not "
        "for any device: turned into a general question it would lead another device into a path "
        "that it cannot take. It stays, and so does the number of CUDA devices that is asked "
        "before DataParallel, also where a variable holds it: it is 0 there, and the other branch "
        "is taken. Where the number serves for more than that, it is converted, and the condition "
        "is flagged.",
        ascend="See that the other branch moves the model to the device.",
        action="flag",
        effort="review",
        examples=(
            Example(
                _T + "\nif torch.cuda.is_available():\n    net = torch.nn.DataParallel(net)\n",
                _T + "\nif torch.cuda.is_available():\n    net = torch.nn.DataParallel(net)\n",
            ),
            Example(
                _T + "\nif torch.cuda.is_available():\n    if torch.cuda.device_count() > 1:\n"
                "        net = torch.nn.DataParallel(net)\n    net = net.cuda()\n",
                _T + "import accel\n\nif accel.is_available():\n"
                "    if torch.cuda.device_count() > 1:\n"
                "        net = torch.nn.DataParallel(net)\n    net = net.to(accel.device())\n",
            ),
            Example(
                _T + "\nchips = torch.cuda.device_count()\nfast = torch.cuda.is_available()\n"
                "size = 8 * max(1, chips)\nif chips > 1:\n    net = torch.nn.DataParallel(net)\n",
                _T + "import accel\n\nchips = torch.cuda.device_count()\n"
                "fast = accel.is_available()\nsize = 8 * max(1, chips)\nif chips > 1:\n"
                "    net = torch.nn.DataParallel(net)\n",
            ),
        ),
        kept=(
            _T + "import subprocess\n\nif torch.cuda.is_available():\n"
            "    subprocess.run(['nvidia-smi', '-L'])\n",
            _T + "\nif torch.cuda.is_available():\n    print(torch.version.cuda)\n",
            _T + "\nif torch.cuda.is_available():\n    import bitsandbytes as bnb\n",
            _T + "\ndef main():\n    if not torch.cuda.is_available():\n        return\n"
            "    import pycuda.autoinit\n",
            _T + "\nif not torch.cuda.is_available():\n    net = Net()\n"
            "else:\n    net = torch.nn.DataParallel(Net())\n",
            _T + "\nif torch.cuda.is_available():\n    run(1)\n"
            "elif hasattr(torch, 'npu') and torch.npu.is_available():\n    run(2)\n",
            _T + "\nif torch.cuda.is_available() and flag:\n    from nms import nms_cuda_kernel\n",
            _T + "\nif torch.cuda.is_available():\n    import apex\nelse:\n    apex = None\n",
            _T + "\nargs.n_gpu = torch.cuda.device_count()\nprint(args.n_gpu)\n\n"
            "def wrap(args, net):\n"
            "    return torch.nn.DataParallel(net) if args.n_gpu > 1 else net\n",
            _T + "\nclass Run:\n    def __init__(self):\n"
            "        self.n = torch.cuda.device_count()\n\n"
            "    def wrap(self, net):\n        if self.n >= 2:\n"
            "            net = torch.nn.DataParallel(net, list(range(self.n)))\n"
            "        return net\n",
            _T + "\nmany = torch.cuda.device_count() > 1\nif many:\n"
            "    net = torch.nn.DataParallel(net)\nloss = loss.mean() if many else loss\n",
            _T + "\nif torch.cuda.is_available():\n    torch.backends.cudnn.benchmark = True\n",
        ),
    ),
)
_LOOSE = ("DataParallel", "data_parallel", "torch.version.cuda")
_left: WeakKeyDictionary[Module, frozenset[Span]] = WeakKeyDictionary()
_kept: WeakKeyDictionary[Module, frozenset[ast.AST]] = WeakKeyDictionary()


def is_kept(module: Module, node: ast.AST) -> bool:
    """Whether `torch.cuda.is_available` or `device_count`, or its call, stays as it is.

    In a condition of what only CUDA has; elsewhere they are converted like other functions.
    """
    found = _kept.get(module)
    if found is None:
        list(find(module))
        found = _kept[module]
    return node in found


def find(module: Module) -> Iterator[Finding]:
    """Guards of what only CUDA has."""
    kept: set[ast.AST] = set()
    findings: dict[ast.AST, Finding] = {}
    for call in module.all(ast.Call):
        if call.args or module.qualified(call.func) not in GUARDS:
            continue
        finding = _guard(module, call)
        if finding is not None:
            kept.update((call, call.func))
            findings[call] = finding
        elif _remembered(module, call, findings) or _is_left(module, call):
            kept.update((call, call.func))
    _kept[module] = frozenset(kept)
    yield from findings.values()


def _is_left(module: Module, call: ast.Call) -> bool:
    """Whether it is the test of `'cuda' if ... else 'cpu'` where that is left to a human.

    With a converted test another device would say 'cuda'.
    """
    test: ast.AST = call
    while isinstance(module.parent(test), ast.UnaryOp):
        test = module.parent(test)
    choice = module.parent(test)
    if not isinstance(choice, ast.IfExp) or choice.test is not test:
        return False
    found = _left.get(module)
    if found is None:
        flags = (one for one in devices_strings.find(module) if one.action == "flag")
        found = _left[module] = frozenset(one.span for one in flags if one.rule == "ACC006")
    return module.span(choice) in found


def _remembered(module: Module, call: ast.Call, findings: dict[ast.AST, Finding]) -> bool:
    """Whether a variable that holds the answer serves nothing but what only CUDA has.

    Where it serves that among other things, each such use is a finding of its own.
    """
    if module.qualified(call.func) == "torch.cuda.device_count":
        return _counted(module, call, findings)
    uses = _uses(module, call)
    only = {use: what for use in uses if (what := _behind(module, use))}
    if only and len(only) == len(uses):
        findings[call] = _flag(module, call.func, next(iter(only.values())))
        return True
    for use, what in only.items():
        findings.setdefault(use, _flag(module, use, what))
    return False if uses else _answered(module, call, findings)


def _answered(module: Module, call: ast.Call, findings: dict[ast.AST, Finding]) -> bool:
    """The same of an answer that an attribute holds, or a function of the program's own gives."""
    tests: dict[ast.expr, str] = {}
    others = 0
    for sink in sinks(module, call):
        test = sink.node.test if isinstance(sink.node, (ast.If, ast.IfExp)) else None
        if test is None or call in ast.walk(test) or asks_for_cuda(module, test):
            others += sink.kind not in ("message", "stored")
            continue
        what = content(module, guarded(module, test) or _branch(sink.node)).only_cuda
        if what:
            tests[test] = what
        else:
            others += 1
    if tests and not others:
        findings[call] = _flag(module, call.func, next(iter(tests.values())))
        return True
    for test, what in tests.items():
        findings.setdefault(test, _flag(module, test, what))
    return False


def _branch(node: ast.AST) -> list[ast.AST]:
    body = getattr(node, "body", [])
    return list(body) if isinstance(body, list) else [body]


def _counted(module: Module, call: ast.Call, findings: dict[ast.AST, Finding]) -> bool:
    """The same of a number of devices, which may be compared far from where it is asked."""
    decision = decides(module, call)
    if not decision.guards:
        return False
    node, what = next(iter(decision.guards.items()))
    if decision.is_all:
        line = module.source.line_of(module.span(node).start)
        findings[call] = module.flag(
            call.func,
            "ACC030",
            f"On line {line} it decides on {what}: on other devices the number stays 0.",
            "One process a device is the way to several of them: see ACC094.",
        )
        return True
    for node, what in decision.guards.items():
        place = node.test if isinstance(node, (ast.If, ast.IfExp)) else node
        findings.setdefault(place, _flag(module, place, what))
    return False


def _uses(module: Module, call: ast.Call) -> list[ast.Name]:
    """Where a variable that is assigned the answer, perhaps with other conditions, is read."""
    node: ast.AST = call
    parent = module.parent(node)
    while isinstance(parent, ast.BoolOp) or (
        isinstance(parent, ast.IfExp) and (parent.test is not node or _is_answer(parent))
    ):
        node, parent = parent, module.parent(parent)
    target = parent.targets[0] if isinstance(parent, ast.Assign) else None
    binding = module.scope(target).find(target.id) if isinstance(target, ast.Name) else None
    return binding.uses if binding is not None else []


def _is_answer(node: ast.IfExp) -> bool:
    """`True if ... else False`, and the like with numbers."""
    branches = (node.body, node.orelse)
    return all(isinstance(one, ast.Constant) and isinstance(one.value, int) for one in branches)


def _behind(module: Module, use: ast.Name) -> str:
    """What only CUDA has behind a condition, unless the condition asks for CUDA besides."""
    body = guarded(module, use)
    if body is None or asks_for_cuda(module, module.parent(use)):
        return ""
    return content(module, body).only_cuda


def _guard(module: Module, call: ast.Call) -> Finding | None:
    body = guarded(module, call)
    if body is None:
        return _negated(module, call)
    if ascend_branch(module, call):
        return module.keep(
            call.func, "ACC030", "The program has a branch of its own for Ascend behind this one."
        )
    is_count = module.qualified(call.func) != "torch.cuda.is_available"
    if not is_count and only_switches([n for n in body if isinstance(n, ast.stmt)], module):
        return module.keep(call.func, "ACC030", "It guards switches of <CUDA>'s own.")
    held = content(module, body)
    what = held.only_cuda
    if not what and held.kernel and not is_count:
        what = f"the kernel {held.kernel}"
    if not what:
        return None
    return _flag(module, call.func, what)


def _negated(module: Module, call: ast.Call) -> Finding | None:
    """A guard by `if not torch.cuda.is_available()`: of its `else`, or what its `return` leaves."""
    otherwise, after = guarded_after(module, call)
    what = content(module, otherwise).only_cuda
    if not what:
        # A whole program may follow: what has a finding of its own there needs no guard.
        loose = content(module, after).only_cuda
        what = "" if loose.startswith(_LOOSE) else loose
    return _flag(module, call.func, what) if what else None


def _flag(module: Module, node: ast.AST, what: str) -> Finding:
    return module.flag(
        node,
        "ACC030",
        f"It guards {what}: another device must not take this branch.",
        "See what other devices do here; write a branch for them if the other one does not serve.",
    )
