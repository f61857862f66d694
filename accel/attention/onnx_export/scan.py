"""Attention as an ONNX `Scan` over blocks of queries: exact, and one block of scores at a time."""

from __future__ import annotations

from typing import Any

from accel.errors import BackendError

BLOCK = 128  # queries of a step; its scores, `[B, H, BLOCK, S]` in float32, are all that is held


def scan_over_queries(
    query: Any, key: Any, value: Any, intervals: Any, dense: Any, causal: bool, scale: float,
    softcap: float | None, bias: Any, bias_kind: str, bias_shift: int | None,
) -> tuple[Any, Any]:  # fmt: skip
    """Record the operators of a call; called while `torch.onnx.export` translates it.

    Args:
        query: `[B, H, T, D]`, as the exporter's symbolic tensor; the others too.
        key: `[B, H_kv, S, D]`.
        value: `[B, H_kv, S, D_v]`.
        intervals: int32 `[m, 2, B or 1, T]`, or None.
        dense: bool `[B or 1, H or 1, T or 1, S or 1]`, or None.
        causal: Aligned at the bottom right; then the two are None.
        scale: Of the scores.
        softcap: Of the scaled scores, or None.
        bias: As in `Bias`, or None.
        bias_kind: `dense`, `alibi` or `relative`.
        bias_shift: Where the first query stands; None: `S - T`.

    Returns:
        `out` in the query's dtype and `lse` in float32.

    Raises:
        BackendError: The numbers of heads are not fixed.
    """
    from onnxscript import ir

    opset18 = _opset()
    call = _Outside(query, key, value, bias_shift)
    if causal:
        intervals = call.causal_intervals()
    scanned = {"query": call.query_blocks(), "places": call.blocks(call.places, 0, 1)}
    if intervals is not None:
        scanned["intervals"] = call.blocks(opset18.Cast(intervals, to=ir.DataType.INT64), 3, 4)
    held: dict[str, Any] = {}
    shapes = {name: t.shape for name, t in (("dense", dense), ("bias", bias)) if t is not None}
    if dense is not None:
        dense = opset18.Cast(dense, to=ir.DataType.INT64)
    for name, tensor, by_query in (("dense", dense, True), ("bias", bias, bias_kind == "dense")):
        if tensor is None:
            continue
        if by_query and shapes[name][2] != 1:
            scanned[name] = call.blocks(tensor, 2, 4)
        else:
            held[name] = tensor
    body = _Inside(call, list(scanned), held, shapes).graph(scale, softcap, bias_kind)
    both = call.joined(opset18.Scan(*scanned.values(), body=body, num_scan_inputs=len(scanned)))
    size = opset18.Shape(value, start=3)
    out = opset18.Slice(both, call.ints(0), size, call.ints(3))
    return opset18.CastLike(out, query), opset18.Squeeze(
        opset18.Slice(both, size, opset18.Add(size, call.ints(1)), call.ints(3)), call.ints(3)
    )


def _opset() -> Any:
    """The operators that are recorded; untyped, since a symbolic tensor may be of any dtype."""
    from onnxscript import opset18

    return opset18


class _Outside:
    """What is computed once, before and after the scan."""

    def __init__(self, query: Any, key: Any, value: Any, shift: int | None) -> None:
        from onnxscript import ir

        op = _opset()
        if not (isinstance(query.shape[1], int) and isinstance(key.shape[1], int)):
            raise BackendError(
                "attention is exported to ONNX with fixed numbers of heads: make that dimension "
                "static in dynamic_shapes"
            )
        self.op, self.single, self.whole = op, ir.DataType.FLOAT, ir.DataType.INT64
        self.key_heads, self.groups = key.shape[1], query.shape[1] // key.shape[1]
        self.query = op.Cast(query, to=self.single)
        self.keys = op.Transpose(op.Cast(key, to=self.single), perm=[0, 1, 3, 2])
        self.values = op.Cast(value, to=self.single)
        self.rows = op.Shape(query, start=2, end=3)
        self.columns = op.Shape(key, start=2, end=3)
        self.column = self.count(self.columns)
        first = op.Sub(self.columns, self.rows) if shift is None else self.ints(shift)
        self.places = op.Add(self.count(self.rows), first)

    def ints(self, *numbers: int) -> Any:
        return self.op.Constant(value_ints=list(numbers))

    def count(self, length: Any) -> Any:
        """`0` to `length - 1`, from a length `[1]`."""
        zero, one = (self.op.Constant(value_int=n) for n in (0, 1))
        return self.op.Range(zero, self.op.Squeeze(length), one)

    def causal_intervals(self) -> Any:
        """int64 `[1, 2, 1, T]`."""
        upper = self.op.Add(self.places, self.ints(1))
        upper = self.op.Min(self.op.Max(upper, self.ints(0)), self.columns)
        both = self.op.Concat(
            *(
                self.op.Unsqueeze(bound, self.ints(0))
                for bound in (self.op.Sub(upper, upper), upper)
            ),
            axis=0,
        )
        return self.op.Unsqueeze(both, self.ints(0, 2))

    def query_blocks(self) -> Any:
        """`[n, B, H_kv, G * BLOCK, D]`."""
        cut = self.blocks(self.query, 2, 4)  # [n, B, H, BLOCK, D]
        shape = self.op.Concat(
            self.op.Shape(cut, start=0, end=2), self.ints(self.key_heads, self.groups * BLOCK),
            self.op.Shape(cut, start=4), axis=0,
        )  # fmt: skip
        return self.op.Reshape(cut, shape)

    def blocks(self, tensor: Any, axis: int, rank: int) -> Any:
        """The axis of queries in blocks, the last padded with zeros, and their number first."""
        op = self.op
        missing = op.Mod(op.Sub(self.ints(0), self.rows), self.ints(BLOCK))
        before, after = rank + axis, rank - axis - 1
        pads = [self.ints(*[0] * before), missing, *([self.ints(*[0] * after)] if after else [])]
        padded = op.Pad(tensor, op.Concat(*pads, axis=0))
        parts = [self.ints(-1, BLOCK)]
        if axis > 0:
            parts.insert(0, op.Shape(tensor, start=0, end=axis))
        if after:
            parts.append(op.Shape(tensor, start=axis + 1))
        cut = op.Reshape(padded, op.Concat(*parts, axis=0))
        order = [axis, *range(axis), *range(axis + 1, rank + 1)]
        return op.Transpose(cut, perm=order)

    def joined(self, stacked: Any) -> Any:
        """`[n, B, H_kv, G * BLOCK, D]` to `[B, H, T, D]`."""
        op, size = self.op, self.op.Shape(stacked, start=4)
        shape = (op.Shape(stacked, start=0, end=3), self.ints(self.groups, BLOCK), size)
        moved = op.Transpose(
            op.Reshape(stacked, op.Concat(*shape, axis=0)), perm=[1, 2, 3, 0, 4, 5]
        )
        heads = self.ints(self.key_heads * self.groups, -1)
        shape = (op.Shape(stacked, start=1, end=2), heads, size)
        whole = op.Reshape(moved, op.Concat(*shape, axis=0))
        return op.Slice(whole, self.ints(0), self.rows, self.ints(2))


class _Inside:
    """The body of the scan: one block of queries against all keys."""

    def __init__(
        self, outside: _Outside, scanned: list[str], held: dict[str, Any], shapes: dict[str, Any]
    ) -> None:
        import onnx_ir as ir
        from onnx_ir.tape import Tape

        self.ir, self.outside, self.tape = ir, outside, Tape()
        self.held, self.shapes = held, shapes
        single = ("query", "bias")
        self.inputs = {
            name: ir.Value(
                name=f"{name}_block",
                type=ir.TensorType(outside.single if name in single else outside.whole),
            )
            for name in scanned
        }

    def graph(self, scale: float, softcap: float | None, bias_kind: str) -> Any:
        """Output and, as a last column, log-sum-exp: `[B, H_kv, G * BLOCK, D_v + 1]`."""
        outside = self.outside
        scores = self.op("MatMul", self.inputs["query"], outside.keys)
        scores = self.op("Mul", scores, self.number(scale))
        if softcap is not None:
            cap = self.number(softcap)
            scores = self.op("Mul", self.op("Tanh", self.op("Div", scores, cap)), cap)
        apart = self.ints(0, outside.key_heads, outside.groups, BLOCK, -1)
        scores = self.op("Reshape", scores, apart)
        if "bias" in self.inputs or "bias" in self.held:
            scores = self.op("Add", scores, self.added(bias_kind))
        if (seen := self.seen()) is not None:
            scores = self.op("Where", seen, scores, self.number(float("-inf")))
        packed = self.ints(0, outside.key_heads, outside.groups * BLOCK, -1)
        probability, lse = self.softmax(self.op("Reshape", scores, packed))
        out = self.op("MatMul", probability, outside.values)
        both = self.op("Concat", out, lse, axis=-1)
        both.name, both.type = "block", self.ir.TensorType(self.ir.DataType.FLOAT)
        return self.ir.Graph(
            list(self.inputs.values()), [both], nodes=self.tape.nodes, name="attention_of_a_block",
            opset_imports={"": 18},
        )  # fmt: skip

    def op(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        value = self.tape.op(name, list(inputs), attributes)
        # Left without a name it would get one that the graph around may have given already. No
        # parameter has this one: its first part is no identifier.
        value.name = f"attention/{len(self.tape.nodes)}"
        return value

    def number(self, value: float) -> Any:
        return self.op("Constant", value_float=value)

    def ints(self, *numbers: int) -> Any:
        return self.op("Constant", value_ints=list(numbers))

    def tensor(self, name: str) -> Any:
        return self.inputs.get(name, self.held.get(name))

    def seen(self) -> Any:
        """What broadcasts to `[B, H_kv, G, BLOCK, S]`; None: everything."""
        found = None
        if "intervals" in self.inputs:
            low, high = (
                self.op("Unsqueeze", self.op(
                    "Gather", self.inputs["intervals"], self.op("Constant", value_int=n), axis=1
                ), self.ints(-1))
                for n in (0, 1)
            )  # fmt: skip
            column = self.outside.column
            inside = self.op(
                "And", self.op("GreaterOrEqual", column, low), self.op("Less", column, high)
            )
            counted = self.op("Cast", inside, to=self.outside.whole)
            any_of = self.op("ReduceMax", counted, self.ints(0), keepdims=0)
            found = self.op("Greater", any_of, self.ints(0))
            found = self.op("Unsqueeze", found, self.ints(1, 2))
        if self.tensor("dense") is None:
            return found
        allowed = self.op(
            "Greater", self.by_group(self.tensor("dense"), self.shapes["dense"]), self.ints(0)
        )
        return allowed if found is None else self.op("And", found, allowed)

    def added(self, kind: str) -> Any:
        """A bias that broadcasts to `[B, H_kv, G, BLOCK, S]`."""
        tensor, outside, shape = self.tensor("bias"), self.outside, self.shapes["bias"]
        single = self.op("Cast", tensor, to=outside.single)
        if kind == "dense":
            return self.by_group(single, shape)
        places = self.op("Unsqueeze", self.inputs["places"], self.ints(-1))
        distance = self.op("Sub", outside.column, places)
        if kind == "alibi":
            size = self.op("Cast", self.op("Abs", distance), to=outside.single)
            entries = 0 if len(shape) == 2 else 1  # as many as there are, or one for all
            apart = self.ints(entries, outside.key_heads, outside.groups, 1, 1)
            return self.op("Mul", self.op("Reshape", self.op("Neg", single), apart), size)
        reach = self.ints(shape[1] // 2)
        near = self.op("Min", self.op("Max", distance, self.op("Neg", reach)), reach)
        rows = self.op("Gather", single, self.op("Add", near, reach), axis=1)
        return self.by_group(self.op("Unsqueeze", rows, self.ints(0)), (1, shape[0]))

    def by_group(self, tensor: Any, shape: Any) -> Any:
        """`[B or 1, H or 1, ...]` to `[B or 1, H_kv or 1, G or 1, ...]`."""
        if shape[1] == 1:
            return self.op("Unsqueeze", tensor, self.ints(2))
        return self.op("Reshape", tensor, self.op(
            "Concat", self.op("Shape", tensor, start=0, end=1),
            self.ints(self.outside.key_heads, self.outside.groups),
            self.op("Shape", tensor, start=2), axis=0,
        ))  # fmt: skip

    def softmax(self, scores: Any) -> tuple[Any, Any]:
        """Probabilities, 0 in a row that sees nothing, and log-sum-exps, -inf there."""
        axis, lowest, zero = self.ints(-1), self.number(float("-inf")), self.number(0.0)
        highest = self.op("ReduceMax", scores, axis, keepdims=1)
        highest = self.op("Where", self.op("Equal", highest, lowest), zero, highest)
        weights = self.op("Exp", self.op("Sub", scores, highest))
        total = self.op("ReduceSum", weights, axis, keepdims=1)
        some = self.op("Greater", total, zero)
        safe = self.op("Where", some, total, self.number(1.0))
        lse = self.op("Where", some, self.op("Add", highest, self.op("Log", safe)), lowest)
        return self.op("Div", weights, safe), lse
