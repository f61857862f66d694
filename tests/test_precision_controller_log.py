"""The controller's log: written by a run, replayed from the file alone, refused when changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from accel.precision.controller import Controller, ControllerConfig, Operand, replay
from accel.precision.controller.page import page_of, write_page
from accel.precision.controller.statistics import cast_statistics, quantized_statistics
from accel.precision.operand import ROLES, SLOTS, ModulePlan, OperandFormat, Role, Slot
from accel.precision.policy.formats import format_text
from accel_kernels.fp8.formats import E4M3, Scaling
from accel_kernels.fp8.quantization import quantize

CONFIG = ControllerConfig(interval=5, confirm=2, calm=2, cooldown=10, budget=0.4)
FP8 = OperandFormat(scaling=Scaling(E4M3, "tensor"))


def plan_of(name: str, form: OperandFormat = FP8, compute: torch.dtype = torch.bfloat16):
    return ModulePlan(name, "Linear", compute, dict.fromkeys(SLOTS, form), {})


class FakeLayer:
    """Measures tensors that a test gives it, as a layer measures its operands."""

    def __init__(self, plan: ModulePlan) -> None:
        self.plan = plan
        self.formats: dict[Slot, OperandFormat] = dict(plan.slots)
        self.collect = False
        self.flops = 1000
        self.probes: dict[Role, tuple[OperandFormat, ...]] = dict.fromkeys(ROLES, ())
        self.statistics: dict[Role, Tensor] = {}

    def set_probes(self, role: Role, probes: tuple[OperandFormat, ...]) -> None:
        self.probes[role] = probes
        self.statistics[role] = torch.full((len(probes), 6), -1.0)

    def run(self, values: dict[Role, Tensor]) -> None:
        """One micro-batch."""
        for role, tensor in values.items() if self.collect else ():
            for number, probe in enumerate(self.probes[role]):
                if probe.scaling is None:
                    found = cast_statistics(tensor, probe.dtype)
                else:
                    found = quantized_statistics(tensor, quantize(tensor, probe.scaling))
                table = self.statistics[role]
                table[number] = torch.maximum(table[number], found)


def tensors(step: int, *, outlier: Role | None = None) -> dict[Role, Tensor]:
    generator = torch.Generator().manual_seed(step)
    made = {role: torch.randn(32, 256, generator=generator) for role in ROLES}
    if outlier is not None:
        made[outlier][:, 3] = 1e7
    return made


def layers_of(*names: str) -> dict[str, FakeLayer]:
    return {name: FakeLayer(plan_of(name)) for name in names}


def step_of(layers: dict[str, FakeLayer], step: int, role: Role = "input") -> None:
    """`b` has an outlier channel in steps 10 to 29."""
    for name, layer in layers.items():
        layer.run(tensors(step, outlier=role if name == "b" and 10 <= step < 30 else None))


def run(log: Path | None, steps: int = 60, role: Role = "input") -> tuple[Controller, list]:
    layers = layers_of("a", "b", "c")
    controller = Controller(layers, CONFIG, log=log)
    decided = []
    for step in range(steps):
        step_of(layers, step, role)
        decided += controller.after_step()
    return controller, decided


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list]:
    path = tmp_path_factory.mktemp("log") / "precision.jsonl"
    controller, decided = run(path)
    controller.close()
    return path, decided


def test_the_outlier_is_found_and_the_way_back_too(written) -> None:
    decided = written[1]
    assert [(one.operand, one.kind) for one in decided] == [
        (Operand("b", "input"), "promote"), (Operand("b", "input"), "demote")
    ]  # fmt: skip
    assert decided[0].formats == ("float8_e4m3fn", "bfloat16")
    assert decided[0].share == pytest.approx(2 / 9), "an input is in two of a layer's products"
    assert 10 <= decided[0].step <= 16
    assert decided[1].step >= 30
    assert decided[1].share == 0.0


@pytest.mark.parametrize(
    ("role", "name", "share"),
    [("input", "bfloat16", 2 / 9), ("weight", "bfloat16", 2 / 9),
     ("gradient", "float8_e5m2:1x128", 0.0)],
)  # fmt: skip
def test_only_a_gradient_is_kept_in_eight_bits_by_e5m2(tmp_path, role, name, share) -> None:
    """The same outlier channel in each operand: beyond E4M3's range, within E5M2's."""
    path = tmp_path / "log.jsonl"
    controller, decided = run(path, role=role)
    controller.close()
    assert [(one.operand, one.kind) for one in decided] == [
        (Operand("b", role), "promote"), (Operand("b", role), "demote")
    ]  # fmt: skip
    assert decided[0].formats == ("float8_e4m3fn", name)
    assert decided[0].share == pytest.approx(share)
    assert ("float8_e5m2" in decided[0].reason) == (role == "gradient")
    assert list(replay(path).decisions) == decided


def test_an_input_without_budget_stays_in_eight_bits() -> None:
    layers, decided = layers_of("a", "b", "c"), []
    controller = Controller(layers, dataclasses.replace(CONFIG, budget=0.2))
    for step in range(20):
        step_of(layers, step)
        decided += controller.after_step()
    assert [(one.operand, one.kind) for one in decided] == [(Operand("b", "input"), "refuse")]
    assert "bfloat16 would put 22.2 % of the FLOPs above FP8, the budget is 20 %" in (
        decided[0].reason
    )
    assert controller.share == 0.0
    assert all(form.is_fp8 for form in layers["b"].formats.values())


def test_replay_decides_the_same_from_the_file_alone(written) -> None:
    path, decided = written
    again = replay(path)
    assert list(again.decisions) == decided
    assert again.config == CONFIG
    assert again.is_complete
    assert again.step == 59
    assert len(again.operands) == 9
    left = {operand for readings in again.readings.values() for operand in readings}
    assert left == {Operand("b", "input")}, "what passes is left out"
    assert min(again.readings) == 10


def test_every_line_is_strict_json(written) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for line in written[0].read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_truncation_at_any_byte_is_one_clear_error(written, tmp_path) -> None:
    data = written[0].read_bytes()
    cut = tmp_path / "cut.jsonl"
    for length in [*range(0, len(data), 97), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"truncated|no end"):
            replay(cut)


def test_a_log_without_an_end_is_replayed_on_request(written, tmp_path) -> None:
    lines = written[0].read_text().splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="partial=True"):
        replay(part)
    again = replay(part, partial=True)
    assert not again.is_complete
    assert list(again.decisions) == written[1]


def test_a_reading_without_its_decision_is_found_at_the_end_too(written, tmp_path) -> None:
    lines = written[0].read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"kind":"decision"' in line)
    part = tmp_path / "part.jsonl"
    part.write_text("".join(lines[:last]))
    with pytest.raises(ValueError, match="which the log lacks"):
        replay(part, partial=True)


def test_a_changed_line_is_named(written, tmp_path) -> None:
    lines = written[0].read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    for number, line in enumerate(lines):
        digit = next(i for i, c in enumerate(line) if c in "12345678")
        other = line[:digit] + str(int(line[digit]) + 1) + line[digit + 1 :]
        changed.write_text("".join([*lines[:number], other, *lines[number + 1 :]]))
        with pytest.raises(ValueError, match=f"line {number + 1}|header of a log of version"):
            replay(changed)


def test_a_line_that_is_only_written_otherwise_is_found(written, tmp_path) -> None:
    lines = written[0].read_text().splitlines(keepends=True)
    path = tmp_path / "spaced.jsonl"
    path.write_text("".join([json.dumps(json.loads(lines[0])) + "\n", *lines[1:]]))
    with pytest.raises(ValueError, match="line 1: its digest does not fit"):
        replay(path)


@pytest.mark.parametrize("edit", ["remove", "repeat", "swap"])
def test_lines_that_are_removed_repeated_or_swapped_are_found(written, tmp_path, edit) -> None:
    lines = written[0].read_text().splitlines(keepends=True)
    edited = {
        "remove": [*lines[:3], *lines[4:]],
        "repeat": [*lines[:4], *lines[3:]],
        "swap": [*lines[:3], lines[4], lines[3], *lines[5:]],
    }[edit]
    path = tmp_path / "edited.jsonl"
    path.write_text("".join(edited))
    with pytest.raises(ValueError, match=r"line [45]"):
        replay(path)


def test_a_forged_decision_with_fitting_digests_is_found(written, tmp_path) -> None:
    """Digests are no secret: the decisions themselves are made again."""
    from accel.precision.controller.log import Chain

    for change in (
        lambda one: {**one, "after": 3},
        lambda one: {**one, "reason": "none"},
        lambda one: None,
    ):
        chain, lines = Chain(), []
        for line in written[0].read_text().splitlines():
            content = json.loads(line)
            del content["digest"]
            if content["kind"] == "decision" and content["change"] == "promote":
                content = change(content)
            if content is not None:
                lines.append(chain.add(content))
        path = tmp_path / "forged.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(ValueError, match="deciding again gives"):
            replay(path)


@pytest.mark.parametrize(
    "text", ["", "\n", "{}\n", "[]\n", "null\n", "no json\n", '{"kind":"end","digest":"x"}\n']
)
def test_a_file_that_is_no_log_is_one_clear_error(tmp_path, text) -> None:
    path = tmp_path / "no.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"no\.jsonl"):
        replay(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="UTF-8"):
        replay(path)


def test_resuming_continues_the_log_to_the_same_bytes(written, tmp_path) -> None:
    for cut in (1, 11, 12, 13, 14, 31, 59):
        path = tmp_path / f"{cut}.jsonl"
        layers = layers_of("a", "b", "c")
        first, decided, state = Controller(layers, CONFIG, log=path), [], {}
        for step in range(min(cut + 7, 60)):  # some steps that the checkpoint does not know
            if step == cut:
                state, known = first.state_dict(), list(decided)
            step_of(layers, step)
            decided += first.after_step()
        layers = layers_of("a", "b", "c")
        second, decided = Controller(layers, CONFIG, log=path), known
        second.load_state_dict(state)
        for step in range(cut, 60):
            step_of(layers, step)
            decided += second.after_step()
        second.close()
        assert decided == written[1]
        assert path.read_bytes() == written[0].read_bytes()


@pytest.mark.parametrize(
    ("role", "name"), [("input", "bfloat16"), ("gradient", "float8_e5m2:1x128")]
)
def test_resuming_without_the_file_begins_one_that_replays(tmp_path, role, name) -> None:
    first, decided = run(None, 20, role)
    layers = layers_of("a", "b", "c")
    path = tmp_path / "other.jsonl"
    second = Controller(layers, CONFIG, log=path)
    second.load_state_dict(first.state_dict())
    form = layers["b"].formats[Slot("weight_gradient", role)]
    assert format_text(form) == name
    for step in range(20, 60):
        step_of(layers, step, role)
        decided += second.after_step()
    second.close()
    assert decided == run(None, role=role)[1]
    again = replay(path)
    assert list(again.decisions) == decided[1:]
    assert again.start[Operand("b", role)] == 2


def test_another_log_in_the_place_is_not_touched(written, tmp_path) -> None:
    controller, _ = run(None, 20)
    path = tmp_path / "mine.jsonl"
    path.write_text("something else\n")
    second = Controller(layers_of("a", "b", "c"), CONFIG, log=path)
    with pytest.raises(ValueError, match="not the log that the checkpoint was made with"):
        second.load_state_dict(controller.state_dict())
    assert path.read_text() == "something else\n"


def test_a_log_that_cannot_be_written_is_an_error_at_once(tmp_path) -> None:
    with pytest.raises(OSError, match="cannot write"):
        Controller(layers_of("a"), CONFIG, log=tmp_path / "no" / "log.jsonl")


def test_the_controllers_own_state_is_checked(tmp_path) -> None:
    controller, _ = run(None, 3)
    state = controller.state_dict()
    with pytest.raises(ValueError, match="pass the same one"):
        Controller(layers_of("a", "b", "c"), ControllerConfig()).load_state_dict(state)
    with pytest.raises(ValueError, match="other operands"):
        Controller(layers_of("a", "b"), CONFIG).load_state_dict(state)
    with pytest.raises(ValueError, match="not one of"):
        controller.load_state_dict({})
    with pytest.raises(ValueError, match="nothing to"):
        Controller({"a": FakeLayer(plan_of("a", OperandFormat(dtype=torch.bfloat16)))}, CONFIG)


def test_gradients_of_a_skipped_step_do_not_count() -> None:
    asked = []
    for skipped, expected in (
        (True, []), (False, ["promote"]), (lambda: asked.append(1) is None, []),
    ):  # fmt: skip
        layers = layers_of("a", "b")  # each gradient is in a third of the products
        controller, decided = Controller(layers, CONFIG), []
        for step in range(12):
            values = tensors(step)
            values["gradient"][0, 0] = torch.inf
            layers["a"].run(values)
            decided += controller.after_step(skipped=skipped)
        assert [one.kind for one in decided] == expected
    assert len(asked) == 3, "only steps that measured ask: 0, 5 and 10"


def test_the_summary_names_each_operand(written) -> None:
    text = run(None, 20)[0].summary()
    lines = text.splitlines()
    assert sum("/" in line and "as the policy gives" in line for line in lines) == 8
    (line,) = [line for line in lines if line.startswith("b/input")]
    assert "bfloat16" in line
    assert "promoted at step 11" in line
    assert lines[-1] == "above FP8: 22.2 % of the FLOPs, budget 40 %"


def test_a_page_tells_what_changed_and_why(written, tmp_path) -> None:
    page = tmp_path / "page.html"
    write_page(written[0], page)
    text = page.read_text()
    for one in written[1]:
        assert str(one.operand) in text
        assert one.formats[1] in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("<rect") >= 3
    hostile = replay(written[0])
    nasty = Operand("<script>x</script>", "input")
    moved = tuple(one._replace(operand=nasty) for one in hostile.decisions)
    named = tuple(
        one._replace(operand=nasty) if one.operand.module == "b" else one
        for one in hostile.operands
    )
    start = {**hostile.start, nasty: 0}
    made = page_of(hostile._replace(decisions=moved, operands=named, start=start, readings={}))
    assert "<script>x" not in made
