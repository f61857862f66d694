"""The averaging teacher against its formula in float64; what it never does; its state."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel.alignment import Aligner
from accel.alignment.transfer.decay import CosineDecay
from accel.alignment.transfer.distillation import distillation_loss
from accel.alignment.transfer.locking import locked
from accel.alignment.transfer.relational import relational_loss
from accel.alignment.transfer.teacher import EMATeacher
from accel.precision import Precision
from accel.precision.fp8 import Fp8Linear, convert_linears, linear_states
from tests.precision_fp8_cases import RECIPES, plan_of


class Student(nn.Module):
    """Parameters of two dtypes, one shared, and buffers of two kinds."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8).to(dtype)
        self.third = nn.Linear(8, 8, bias=False).to(dtype)
        self.third.weight = self.second.weight
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).to(self.second.weight.dtype)
        return self.norm(self.third(self.second(hidden)).float())


def move(student: nn.Module, size: float = 0.1) -> None:
    """What an optimizer step does."""
    with torch.no_grad():
        for one in student.parameters():
            one.add_(size * torch.randn_like(one))
        for one in student.buffers():
            one.add_(1)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def doubles(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().cpu().double().clone() for name, one in tensors(module).items()}


def planned(decay: float, warm_up: float, steps: int) -> list[float]:
    return [min(decay, (1 + t) / (warm_up + t)) for t in range(steps)]


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_each_parameter_is_the_average_of_all_it_was(device, dtype, buffers):
    """Of 16 bits the float32 average is: what the copy holds is it, rounded once."""
    student = Student(dtype).to(device.torch_device)
    teacher = EMATeacher(student, decay=0.9, warm_up=4.0, buffers=buffers)
    averages = doubles(student)
    parameters = {name for name, _ in student.named_parameters()}
    for decay in planned(0.9, 4.0, 20):
        move(student)
        teacher.update(student)
        for name, one in doubles(student).items():
            floating = tensors(student)[name].is_floating_point()
            averaged = name in parameters or (buffers == "average" and floating)
            averages[name] = decay * averages[name] + (1 - decay) * one if averaged else one
    assert teacher.updates == 20
    for name, one in tensors(teacher.module).items():
        truth = averages[name]
        assert one.dtype == tensors(student)[name].dtype
        narrow = one.dtype in (torch.bfloat16, torch.float16)
        eps = torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
        tolerance = 20 * eps if not narrow else eps / 2 + 20 * 2.0**-23
        torch.testing.assert_close(
            one.detach().cpu().double(), truth, rtol=tolerance, atol=tolerance
        )


def test_small_steps_are_not_lost_in_sixteen_bits():
    """In bfloat16 alone an average at 1 would never see 1 + 2^-7 at a decay of 0.99."""
    student = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(student.weight)
    teacher = EMATeacher(student, decay=0.99, warm_up=1.0)
    nn.init.constant_(student.weight, 1.0 + 2.0**-7)
    for _ in range(200):
        teacher.update(student)
    assert float(teacher.module.weight) == 1.0 + 2.0**-7


def test_an_unchanged_student_changes_nothing():
    student = Student(torch.bfloat16)
    teacher = EMATeacher(student)
    before = {name: one.clone() for name, one in tensors(teacher.module).items()}
    for _ in range(5):
        teacher.update(student)
    assert all(torch.equal(one, before[name]) for name, one in tensors(teacher.module).items())


def test_it_is_updated_in_place_and_the_same_each_time():
    twins = []
    for _ in range(2):
        torch.manual_seed(3)
        student = Student()
        teacher = EMATeacher(student, decay=0.9)
        places = {name: one.data_ptr() for name, one in tensors(teacher.module).items()}
        for _ in range(3):
            move(student)
            teacher.update(student)
        assert places == {name: one.data_ptr() for name, one in tensors(teacher.module).items()}
        twins.append(teacher)
    first, second = (one.state_dict() for one in twins)
    assert all(torch.equal(first[name], second[name]) for name in first if name[0] != "_")
    shared = twins[0].module
    assert shared.third.weight is shared.second.weight
    assert shared.second.weight is not student.second.weight


@pytest.mark.parametrize(("warm_up", "first"), [(10.0, 0.1), (2.0, 0.5), (1.0, 0.999)])
def test_warm_up(warm_up, first):
    student = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(student.weight)
    teacher = EMATeacher(student, decay=0.999, warm_up=warm_up)
    nn.init.ones_(student.weight)
    teacher.update(student)
    assert float(teacher.module.weight.detach()) == pytest.approx(1.0 - first, rel=1e-5)


def test_cosine_decay():
    decay = CosineDecay(0.9, 1.0, steps=10)
    assert [decay(t) for t in (0, 5, 10, 99)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student, decay, warm_up=1.0)
    teacher.updates = 10
    before = teacher.module.weight.detach().clone()
    move(student)
    teacher.update(student)
    assert torch.equal(teacher.module.weight, before)


def test_the_teacher_may_be_elsewhere_and_wider():
    student = Student(torch.bfloat16)
    teacher = EMATeacher(student, decay=0.5, warm_up=1.0).double()
    start = doubles(teacher.module)
    move(student)
    teacher.update(student)
    for name, one in student.named_parameters():
        truth = (start[name] + one.detach().double()) / 2
        torch.testing.assert_close(doubles(teacher.module)[name], truth)


def test_complex_parameters_are_averaged():
    student = nn.ParameterList([torch.ones(2, dtype=torch.complex64)])
    teacher = EMATeacher(student, decay=0.5, warm_up=1.0)
    with torch.no_grad():
        student[0].mul_(3j)
    teacher.update(student)
    torch.testing.assert_close(teacher.module[0].data, torch.full((2,), 0.5 + 1.5j))


# --- never a gradient ----------------------------------------------------------------------------


def test_no_gradient_and_no_graph():
    student = Student()
    teacher = EMATeacher(student)
    x = torch.randn(5, 6, requires_grad=True)
    out = teacher(x)
    assert out.grad_fn is None
    assert not any(one.requires_grad for one in teacher.parameters())
    loss = relational_loss(student(x), out)
    loss.backward()
    teacher.update(student)
    assert all(one.grad is None for one in teacher.parameters())
    assert not any(one.requires_grad for one in tensors(teacher.module).values())
    teacher.requires_grad_(True)  # a parent's own, say
    assert teacher(x).grad_fn is None


def test_it_stays_in_evaluation_mode_and_its_forward_changes_no_buffer():
    parent = nn.Module()
    parent.teacher = EMATeacher(Student().train())
    parent.train()
    assert not any(one.training for one in parent.teacher.modules())
    before = doubles(parent.teacher.module)
    parent.teacher(torch.randn(5, 6))
    assert all(torch.equal(one, before[k]) for k, one in doubles(parent.teacher.module).items())


def test_the_student_stays_as_it_is():
    student = Student().train()
    EMATeacher(student)
    assert student.training
    assert all(one.requires_grad for one in student.parameters())
    assert type(student) is Student


# --- what the student is wrapped in --------------------------------------------------------------


def test_a_state_before_the_first_update():
    """Some averages may be there already, of what was cast, and others not yet."""
    teacher = EMATeacher(Student(torch.bfloat16)).to(torch.bfloat16)
    resumed = EMATeacher(Student(torch.bfloat16)).to(torch.bfloat16)
    resumed.load_state_dict(teacher.state_dict())
    student = Student(torch.bfloat16)
    for one in (teacher, resumed):
        one.update(student)
    for name, one in tensors(teacher.module).items():
        assert torch.equal(tensors(resumed.module)[name], one), name


@pytest.mark.parametrize("whole", [True, False])
def test_a_student_that_is_locked(whole):
    student = nn.Sequential(locked(nn.Linear(3, 3)), nn.Linear(3, 3))
    student = locked(student) if whole else student
    teacher = EMATeacher(student, decay=0.0)
    move(student)
    teacher.update(student)
    for name, one in student.named_parameters():
        assert torch.equal(teacher.module.get_parameter(name), one)
    assert not student[0].weight.requires_grad


@pytest.mark.parametrize("recipe", ["rowwise", "delayed"])
def test_a_student_with_layers_in_eight_bits(recipe):
    """The copy computes in the dtype of its parameters, and its state is nobody's but its own."""
    student = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16))
    plain = copy.deepcopy(student)
    convert_linears(student, [plan_of(**RECIPES[recipe], name=name) for name in ("0", "2")])
    teacher = EMATeacher(student, decay=0.0, warm_up=1.0)
    x = torch.randn(7, 32)
    torch.testing.assert_close(teacher(x), plain(x).detach())
    assert linear_states(teacher) == {}
    student(x).sum().backward()
    move(student)
    teacher.update(student)
    assert isinstance(student[0], Fp8Linear)
    assert list(teacher.module.state_dict()) == list(student.state_dict())
    for name, one in student.named_parameters():
        assert torch.equal(teacher.module.get_parameter(name), one)


def test_a_compiled_student():
    student = nn.Linear(3, 3)
    compiled = torch.compile(student, backend="eager")
    teacher = EMATeacher(compiled, decay=0.0)
    assert list(teacher.module.state_dict()) == ["weight", "bias"]
    move(student)
    teacher.update(compiled)
    assert teacher.updates == 1


def test_an_aligner_learns_from_its_own_average():
    """Embeddings and temperature of the teacher, by pair."""
    encoders = {"text": nn.Linear(5, 4), "image": nn.Linear(7, 4)}
    aligner = Aligner(encoders, dim=4)
    teacher = EMATeacher(aligner, decay=0.5, warm_up=1.0)
    move(aligner)
    batch = {"text": torch.randn(6, 5), "image": torch.randn(6, 7)}
    ours, theirs = (one(batch).embeddings for one in (aligner, teacher))
    loss = distillation_loss(
        ours["text"], ours["image"], theirs["text"], theirs["image"],
        student_scale=aligner.temperatures["text-image"](),
        teacher_scale=teacher.module.temperatures["text-image"](),
    )  # fmt: skip
    assert float(loss.detach()) > 0.0
    loss.backward()
    assert all(bool(one.grad.any()) for one in aligner.parameters())
    teacher.update(aligner)
    assert not any(one.requires_grad for one in theirs.values())
    assert teacher.module.encode("text", batch["text"]).grad_fn is None


@pytest.mark.parametrize("good", [True, False])
def test_a_skipped_step_need_not_update(good):
    """As documented: the outcome of the step decides."""
    student = nn.Linear(3, 1)
    teacher = EMATeacher(student, decay=0.5, warm_up=1.0)
    precision = Precision(student, "compute=bfloat16")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with precision.autocast():
        loss = student(torch.ones(2, 3) * (1.0 if good else math.inf)).sum()
    precision.backward(loss)
    if precision.step(optimizer):
        teacher.update(student)
    assert teacher.updates == int(good)


# --- state -------------------------------------------------------------------------------------


def saved(teacher: EMATeacher) -> dict[str, object]:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_teacher_goes_on_to_the_bit(dtype):
    student = Student(dtype)
    teacher = EMATeacher(student, decay=0.99)
    for _ in range(3):
        move(student, 0.001)
        teacher.update(student)
    resumed = EMATeacher(Student(dtype), decay=0.99)
    resumed.load_state_dict(saved(teacher))
    assert resumed.updates == 3
    for _ in range(3):
        move(student, 0.001)
        for one in (teacher, resumed):
            one.update(student)
    first, second = teacher.state_dict(), resumed.state_dict()
    assert list(first) == list(second)
    extra, other = first.pop("_extra_state"), second.pop("_extra_state")
    assert extra["updates"] == other["updates"] == 6
    assert list(extra["averages"]) == (
        ["second.weight", "second.bias"] if dtype.itemsize == 2 else []
    )
    for name, one in {**first, **extra["averages"]}.items():
        assert torch.equal(one, {**second, **other["averages"]}[name])


def test_keys_are_those_of_the_student():
    student = Student()
    teacher = EMATeacher(student)
    assert list(teacher.module.state_dict()) == list(student.state_dict())
    student.load_state_dict(teacher.module.state_dict())


def test_a_copy_of_a_teacher_is_its_own():
    student = Student(torch.bfloat16)
    teacher = EMATeacher(student, decay=0.5)
    twin = copy.deepcopy(teacher)
    move(student)
    teacher.update(student)
    assert twin.updates == 0
    assert not torch.equal(twin.module.first.weight, teacher.module.first.weight)
    twin.update(student)
    assert torch.equal(twin.module.second.weight, teacher.module.second.weight)


@pytest.mark.parametrize("cast", [torch.float64, torch.float32, torch.bfloat16])
def test_a_cast_rounds_no_average(cast, device):
    """Down and up again: the average is what it was."""
    student = Student(torch.bfloat16)
    teacher = EMATeacher(student, decay=0.9)
    for _ in range(3):
        move(student, 0.01)
        teacher.update(student)
    exact = {name: one.clone() for name, one in teacher.get_extra_state()["averages"].items()}
    exact["first.weight"] = teacher.module.first.weight.detach().clone()
    teacher.to(cast).to(device.torch_device).to(torch.bfloat16).to(torch.float32)
    for name, one in exact.items():
        assert torch.equal(teacher.module.get_parameter(name).cpu(), one), name
    assert teacher.get_extra_state()["averages"] == {}


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"module": torch.nn.functional.relu}, TypeError, "made of a module, not function"),
        ({"decay": 1.5}, ValueError, "decay must be within 0 and 1, not 1.5"),
        ({"decay": math.nan}, ValueError, "decay must be within 0 and 1, not nan"),
        ({"warm_up": 0.5}, ValueError, "warm_up must be at least 1, which means none, not 0.5"),
        ({"buffers": "skip"}, ValueError, "buffers are 'copy' or 'average', not 'skip'"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        EMATeacher(**{"module": nn.Linear(1, 1), **arguments})


def test_bad_schedules():
    for arguments in ((0.9, 1.1, 5), (-0.1, 1.0, 5)):
        with pytest.raises(ValueError, match="within 0 and 1"):
            CosineDecay(*arguments)
    with pytest.raises(ValueError, match="steps must be positive, not 0"):
        CosineDecay(0.9, 1.0, 0)
    student = nn.Linear(1, 1)
    teacher = EMATeacher(student, lambda updates: 2.0 + updates)
    with pytest.raises(ValueError, match=r"the decay of update 0 must be within 0 and 1, not 2\.0"):
        teacher.update(student)
    assert teacher.updates == 0


def test_another_student():
    teacher = EMATeacher(nn.Linear(2, 3))
    before = teacher.module.weight.clone()
    with pytest.raises(ValueError, match="only one of them has 'bias'"):
        teacher.update(nn.Linear(2, 3, bias=False))
    with pytest.raises(ValueError, match=r"'weight' is \[3, 4\], not \[3, 2\]"):
        teacher.update(nn.Linear(4, 3))
    assert torch.equal(teacher.module.weight, before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"_extra_state": {"updates": 3}}, "this is no state of an EMATeacher"),
        ({"_extra_state": {"updates": -1, "averages": {}}}, "updates are a count, not -1"),
        ({"_extra_state": {"updates": 1, "averages": {}}}, "float32 averages are not those"),
        ({"_extra_state": {"updates": 0, "averages": [1]}}, "float32 averages are not those"),
        ({"_extra_state": {"updates": 0, "averages": {"a": 1}}}, "float32 averages are not those"),
    ],
)
def test_bad_states(change, text):
    teacher = EMATeacher(Student(torch.bfloat16))
    with pytest.raises(ValueError, match=text):
        teacher.load_state_dict({**teacher.state_dict(), **change})
    assert teacher.updates == 0


# --- use ---------------------------------------------------------------------------------------


def test_an_average_is_nearer_to_the_truth_than_a_noisy_student():
    """Why one learns from it: steps of noisy gradients jitter about the optimum."""
    torch.manual_seed(0)
    truth = torch.randn(8)
    student = nn.Linear(8, 1, bias=False)
    teacher = EMATeacher(student, decay=0.99)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    distances = []
    for step in range(600):
        x = torch.randn(4, 8)
        target = x @ truth + 2.0 * torch.randn(4)
        optimizer.zero_grad()
        F.mse_loss(student(x).squeeze(1), target).backward()
        optimizer.step()
        teacher.update(student)
        if step >= 300:
            distances.append([float((one.weight - truth).detach().norm())
                              for one in (student, teacher.module)])  # fmt: skip
    own, averaged = torch.tensor(distances).mean(0).tolist()
    assert averaged < 0.5 * own
