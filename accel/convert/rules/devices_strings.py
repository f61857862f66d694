"""ACC002 to ACC006: names of CUDA devices, as arguments, in variables, defaults and conditions."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from accel.convert.finding import Finding
from accel.convert.flow import (
    Purpose,
    device_like,
    is_device_position,
    is_device_string,
    is_tensor_or_module,
    purpose,
)
from accel.convert.flow.options import destination
from accel.convert.flow.positions import is_location, position
from accel.convert.flow.showing import is_shown
from accel.convert.module import Module
from accel.convert.rules.amp_sources import sources
from accel.convert.rules.devices_conditions import Choice, choice_of
from accel.convert.rules.devices_rules import STRING_RULES
from accel.convert.rules.devices_spelling import (
    COMPARED,
    COMPARED_ADVICE,
    Place,
    call,
    converted,
    device_arguments,
    names_choice,
    place_of,
    template_of,
    text_for,
)

RULES = STRING_RULES
OTHER_ACCELERATORS = frozenset({"xpu", "npu", "mps", "hpu", "mlu", "musa", "mtia", "hip", "xla"})
_BUILT = ("cuda:", "cuda:%d", "cuda:%s", "cuda:{}", "cuda:{:d}", "cuda:{0}", "cuda:%i")
# Whose device types other families look at.
_OTHERS = (
    "torch.amp.", "torch.autocast", "torch.random.", "torch.cuda.amp.", "torch.is_autocast_",
    "torch.get_autocast_", "torch.set_autocast_",
)  # fmt: skip
_ADVICE = (
    "If it is a device, write accel.device(...), accel.device_str(...) or "
    "accel.default_device_type(); if not, add `# accel: keep`."
)


def find(module: Module) -> Iterator[Finding]:
    """Every text that names a CUDA device, once."""
    taken: set[ast.AST] = set()
    for node in module.all(ast.Call):
        if module.qualified(node.func) == "torch.device":
            yield from _torch_device(module, node, taken)
    for choice_node in module.all(ast.IfExp):
        if choice_node not in taken:
            yield from _condition(module, choice_node, taken)
    for text in module.all(ast.Constant):
        if isinstance(text.value, str) and text.value.startswith("cuda") and text not in taken:
            yield from _text(module, text, taken)


# --- torch.device(...) ---------------------------------------------------------------------------


def _torch_device(module: Module, node: ast.Call, taken: set[ast.AST]) -> Iterator[Finding]:
    named, number = device_arguments(node)
    if named is None:
        return
    if isinstance(named, ast.IfExp):
        choice = choice_of(module, named)
        if choice is not None and choice.place.number and number is None:
            taken.add(named)
            taken.update(ast.walk(named))
            yield from _replace(
                module,
                node,
                "ACC006",
                "device",
                choice.place,
                "It chooses the device that is there.",
            )
        return
    place = place_of(module, named)
    if place is None or (number is not None and place.number):
        return
    if number is not None:
        place = Place((number,))
    taken.update({named, *(n for n in ast.walk(named) if isinstance(n, ast.Constant))})
    if _is_compared(module, node):
        yield module.flag(node, "ACC032", COMPARED, COMPARED_ADVICE)
        return
    outer = module.parent(node)
    if isinstance(outer, ast.Attribute) and outer.attr == "type" and _is_compared(module, outer):
        return  # a question about the kind of a device
    if place.number or is_immediate(module, node):
        yield from _replace(
            module, node, "ACC004", "device", place, "It names the device that is there."
        )
        return
    # A device without a number follows set_device; so does the type alone.
    yield from _replace(
        module,
        named,
        "ACC004",
        "default_device_type",
        place,
        "It is the type of the device that is there.",
    )


def _replace(
    module: Module, node: ast.AST, rule: str, function: str, place: Place, message: str
) -> Iterator[Finding]:
    parts = call(module, function, place)
    if parts is None:
        yield module.no_target(node, rule)
    else:
        yield converted(module, node, rule, message, *parts)


def is_immediate(module: Module, node: ast.AST) -> bool:
    """Whether a device is used on the spot, by a call that makes or moves tensors."""
    if not is_device_position(module, node):
        return False
    parent = module.parent(node)
    outer = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    if not isinstance(outer, ast.Call):
        return False
    name = module.qualified(outer.func) or ""
    if isinstance(outer.func, ast.Attribute) and outer.func.attr in ("to", "cuda", "to_empty"):
        # The tree's own `to` may want the text that it was given.
        is_own = outer.func.attr == "to" and "to" in module.project.methods
        return not is_own or is_shown(module, outer.func.value)
    if isinstance(outer.func, ast.Attribute) and outer.func.attr.startswith("new_"):
        return True
    deferred = ("torch.device", "torch.set_default_device", "torch.get_device_module")
    return name.startswith("torch.") and name not in deferred


# --- 'cuda' if torch.cuda.is_available() else 'cpu' ----------------------------------------------


def _condition(module: Module, node: ast.IfExp, taken: set[ast.AST]) -> Iterator[Finding]:
    choice = choice_of(module, node)
    if choice is None:
        return
    taken.add(node)
    taken.update(ast.walk(node))
    aim = purpose(module, node)
    stops = any(sink.kind in ("foreign", "parsing") for sink in aim.sinks)
    if aim.meaning != "device" and any(names_choice(sink.name) for sink in aim.sinks):
        stops = True
    if aim.meaning == "other" or stops:
        yield module.flag(node, "ACC006", f"This choice {aim.reason}.", _ADVICE)
        return
    yield from _chosen(module, node, choice)


def _chosen(module: Module, node: ast.IfExp, choice: Choice) -> Iterator[Finding]:
    message = "It chooses the device that is there."
    if not choice.is_object:
        parts = text_for(module, choice.place)
    elif choice.place.number or is_immediate(module, node):
        parts = call(module, "device", choice.place)
    else:
        inner = call(module, "default_device_type", choice.place)
        parts = None if inner is None else (choice.head, "(", *inner, ")")
    if parts is None:
        yield module.no_target(node, "ACC006")
    else:
        yield converted(module, node, "ACC006", message, *parts)


# --- other texts ---------------------------------------------------------------------------------


def _text(module: Module, text: ast.Constant, taken: set[ast.AST]) -> Iterator[Finding]:
    node: ast.expr | None = text
    if text.value in _BUILT:
        node = template_of(text, module)
    place = place_of(module, node) if node is not None else None
    if node is None or place is None or node in taken or _is_compared(module, node):
        return
    taken.add(node)
    parent = module.parent(node)
    if _is_attribute_name(module, node, parent) or _in_location(module, parent):
        return  # `getattr(torch, "cuda")` and `map_location` are other families'
    if _among_others(parent):
        yield module.flag(
            node,
            "ACC034",
            "It stands in a list of kinds of devices.",
            "Name the other kinds there.",
        )
        return
    if _is_exported(module, parent):
        yield module.keep(node, "ACC003", "It is a name that the module exports.")
        return
    where = _where(module, node)
    if where == "device_type" and not place.number:
        if not _is_amp(module, node):
            yield from _replace(
                module, node, "ACC002", "default_device_type", place,
                "It is the type of the device that is there.",
            )  # fmt: skip
        return
    if where == "foreign":
        yield module.flag(
            node, "ACC002", "This package is not built on torch: its devices are its own.", _ADVICE
        )
    elif where == "device":
        yield from _argument(module, node, place)
    elif isinstance(parent, ast.Dict) and node in parent.keys:
        if _is_by_device(parent):
            yield module.flag(
                node,
                "ACC034",
                "The table has no entry for another accelerator.",
                "Add one, or look up whether accel.is_accelerator(device).",
            )
            return
        yield module.keep(node, "ACC003", "It is a key of the program's own table.")
    else:
        yield from _stored(module, node, place, purpose(module, node))


def _is_amp(module: Module, node: ast.AST) -> bool:
    """What autocast and its like are given is another family's."""
    parent = module.parent(node)
    outer = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    name = module.qualified(outer.func) or "" if isinstance(outer, ast.Call) else ""
    return name.startswith(_OTHERS)


def _is_attribute_name(module: Module, node: ast.AST, parent: ast.AST) -> bool:
    if isinstance(parent, ast.Call) and node not in parent.args[:2]:
        return False
    names = ("getattr", "hasattr", "setattr", "delattr")
    called = module.qualified(parent.func) if isinstance(parent, ast.Call) else None
    return called in [f"builtins.{name}" for name in names]


def _in_location(module: Module, parent: ast.AST) -> bool:
    return isinstance(parent, ast.Dict) and is_location(module, parent)


def _among_others(parent: ast.AST) -> bool:
    """In a list of kinds with other accelerators: `for kind in ("cuda", "xpu")`."""
    items = parent.elts if isinstance(parent, (ast.List, ast.Tuple, ast.Set)) else []
    texts = {str(i.value).partition(":")[0] for i in items if isinstance(i, ast.Constant)}
    return bool(texts & OTHER_ACCELERATORS) and texts <= OTHER_ACCELERATORS | {"cuda", "cpu", "gpu"}


def _is_exported(module: Module, parent: ast.AST) -> bool:
    """In `__all__`."""
    outer = module.parent(parent) if isinstance(parent, (ast.List, ast.Tuple)) else None
    targets = outer.targets if isinstance(outer, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)


def _is_by_device(table: ast.Dict) -> bool:
    """Whether all keys of a table are names of devices, more than one of them."""
    keys = [key.value for key in table.keys if isinstance(key, ast.Constant)]
    return len(keys) > 1 and len(keys) == len(table.keys) and all(map(is_device_string, keys))


def _where(module: Module, node: ast.AST) -> str | None:
    parent = module.parent(node)
    if isinstance(parent, ast.keyword):
        outer = module.parent(parent)
        return position(module, outer, parent.arg or "") if isinstance(outer, ast.Call) else None
    if isinstance(parent, ast.Call) and node in parent.args:
        return position(module, parent, parent.args.index(node))
    if isinstance(parent, ast.Dict) and node in parent.values:
        outer = module.parent(parent)  # `device_map={"": "cuda:0"}`
        return "device" if isinstance(outer, ast.keyword) and outer.arg == "device_map" else None
    return None


def _is_compared(module: Module, node: ast.AST) -> bool:
    """Comparisons and the parsing of names are the guards' business."""
    parent = module.parent(node)
    if isinstance(parent, (ast.Tuple, ast.List, ast.Set)):
        parent = module.parent(parent)
    if isinstance(parent, (ast.Compare, ast.MatchValue)):
        return True
    methods = ("startswith", "endswith", "replace", "split", "partition", "strip", "lstrip",
               "removeprefix", "find", "index", "count", "rsplit", "rpartition")  # fmt: skip
    called = parent.func if isinstance(parent, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr in methods


def _argument(module: Module, node: ast.expr, place: Place) -> Iterator[Finding]:
    """A device where a call takes one."""
    if _is_own_object(module, node):
        yield module.flag(node, "ACC002", "The object is no tensor and no module.", _ADVICE)
        return
    rule = "ACC002" if isinstance(node, ast.Constant) else "ACC005"
    message = "It names the device that is there."
    is_object = is_immediate(module, node)
    parts = call(module, "device", place) if is_object else text_for(module, place)
    if parts is None:
        yield module.no_target(node, rule)
    else:
        yield converted(module, node, rule, message, *parts)


def _is_own_object(module: Module, node: ast.expr) -> bool:
    """Whether it is given to `to` of something that is no tensor and no module."""
    parent = module.parent(node)
    outer = module.parent(parent) if isinstance(parent, ast.keyword) else parent
    func = outer.func if isinstance(outer, ast.Call) else None
    if not isinstance(func, ast.Attribute) or func.attr != "to":
        return False
    return is_tensor_or_module(module, func.value) is False


def _stored(module: Module, node: ast.expr, place: Place, aim: Purpose) -> Iterator[Finding]:
    """A device's name that something holds first."""
    if node in sources(module).only:
        return  # `amp` flags it: for `cpu` it would be switched on
    rule = "ACC003" if isinstance(node, ast.Constant) else "ACC005"
    if aim.meaning == "device":
        parts = text_for(module, place)
        if parts is None:
            yield module.no_target(node, rule)
        else:
            yield converted(module, node, rule, "It goes to devices only.", *parts)
    elif any(s.kind == "choice" and device_like(destination(s.node)) for s in aim.sinks):
        yield module.flag(
            node,
            "ACC034",
            "The option takes no other accelerator.",
            "Allow the names of other devices: accel.default_device_type() is the one here.",
        )
    elif aim.meaning == "other":
        yield module.keep(node, rule, f"It {aim.reason}.")
    else:
        name = module.text(node)
        yield module.flag(node, rule, f"{name} {aim.reason}.", _ADVICE)
