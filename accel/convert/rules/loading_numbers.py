"""Whether an entry of a checkpoint is a number or a setting: it is so wherever it is read to."""

from __future__ import annotations

import ast
import re

from accel.convert.module import Module

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# Words in the names of numbers, names and settings.
_NUMBERS = frozenset(
    {
        "epoch", "epochs", "step", "steps", "iter", "iters", "iteration", "iterations", "it",
        "best", "acc", "accuracy", "score", "metric", "loss", "lr", "wd", "args", "arg", "cfg",
        "config", "opt", "options", "hparams", "session", "hyper", "version", "arch", "name",
        "names", "num", "count", "date", "git", "mode", "type", "kwargs", "vocab", "fitness",
    }
)  # fmt: skip
# Words in the names of what may be a tensor of many numbers.
_MANY = frozenset(
    {
        "history", "histories", "log", "logs", "curve", "list", "all", "tensor", "buffer",
        "matrix", "vector", "mean", "std", "var", "weight", "weights", "data", "order", "index",
        "indices", "ids", "mask", "features", "embedding", "embeddings", "state", "states", "per",
        "losses", "scores", "accs",
    }
)  # fmt: skip
_CALLS = frozenset(
    f"builtins.{name}"
    for name in ("print", "int", "float", "bool", "str", "len", "repr", "isinstance")
)


def is_number(module: Module, part: ast.expr, key: str) -> bool:
    """Whether an entry is a number or setting by its key, or is only read as one."""
    words = {word.lower() for word in _WORDS.findall(key)}
    if words & _NUMBERS and not words & _MANY:
        return True
    return _is_read(module, part)


def _is_read(module: Module, node: ast.expr) -> bool:
    """Whether a value is only printed, tested, or made a number."""
    parent = module.parent(node)
    if isinstance(parent, (ast.FormattedValue, ast.Expr, ast.Delete)):
        return True
    if isinstance(parent, ast.Compare):
        return True
    if isinstance(parent, ast.Call) and node in parent.args:
        return module.qualified(parent.func) in _CALLS
    if isinstance(parent, ast.Attribute):
        return parent.attr == "item"
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
        target = parent.targets[0]
        binding = module.scope(target).find(target.id) if isinstance(target, ast.Name) else None
        if binding is None or binding.is_opaque or binding.parameter is not None:
            return False
        return bool(binding.uses) and all(_is_read(module, use) for use in binding.uses)
    return False
