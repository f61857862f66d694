"""The relational forms of distillation against their formulas, and what they do and refuse."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accel.alignment.transfer import relations
from accel.alignment.transfer.relational import RELATIONAL_FORMS as FORMS
from accel.alignment.transfer.relational import relational_loss
from accel.precision.autocast import portable_autocast
from accel_kernels.budgets import budget, deviation, typical
from tests.transfer_cases import plain_relational

SIZES = {"kl": (2, 3, 63, 1000), "distance": (2, 3, 63, 1000), "angle": (3, 4, 40)}
CASES = [(form, rows) for form in FORMS for rows in SIZES[form]]
LEAST = {"kl": 2, "distance": 2, "angle": 3}


def sides(rows: int, *, dim: int = 24, teacher_dim: int = 17) -> tuple[Tensor, Tensor]:
    """float64; vectors of different lengths around 1, the student's close to one another."""
    student = 0.3 * torch.randn(rows, dim, dtype=torch.float64) + 0.2
    return student, 0.3 * torch.randn(rows, teacher_dim, dtype=torch.float64)


def leaf(tensor: Tensor, dtype: torch.dtype = torch.float64, device=None) -> Tensor:
    return tensor.to(device, dtype).detach().requires_grad_()


def results(loss: Tensor, student: Tensor) -> list[Tensor]:
    """The loss and the student's gradient."""
    return [loss.detach(), *torch.autograd.grad(loss, [student])]


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "rows"), CASES)
def test_float64_is_the_formula(form, rows):
    student, teacher = sides(rows)
    ours, theirs = leaf(student), leaf(student)
    found = results(relational_loss(ours, teacher, form=form), ours)
    truth = results(plain_relational(theirs, teacher, form), theirs)
    for one, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("form", "rows"), [("kl", 1000), ("distance", 1000), ("angle", 40)])
def test_float32_is_as_near_as_the_formula_in_float32(device, form, rows):
    student, teacher = sides(rows)
    exact = leaf(student)
    truth = results(plain_relational(exact, teacher, form), exact)
    plain = leaf(student, torch.float32)
    errors = [
        deviation(one, true)
        for one, true in zip(
            results(plain_relational(plain, teacher.float(), form), plain), truth, strict=True
        )
    ]
    ours = leaf(student, torch.float32, device.torch_device)
    loss = relational_loss(ours, teacher.to(device.torch_device, torch.float32), form=form)
    floor = typical(errors)
    for one, error, true in zip(results(loss, ours), errors, truth, strict=True):
        assert one.dtype == torch.float32
        allowed = budget(error, torch.float32, floor=floor)
        assert allowed.exceeded_by(deviation(one, true)) is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_summed_in_float32(device, form, dtype):
    student, teacher = (one.to(dtype) for one in sides(40))
    exact = leaf(student)
    loss, gradient = results(plain_relational(exact, teacher.double(), form), exact)
    ours = leaf(student, dtype, device.torch_device)
    with portable_autocast(device.torch_type):
        found = relational_loss(ours, teacher.to(device.torch_device), form=form)
        found, own = results(found, ours)
    assert found.dtype == torch.float32
    assert own.dtype == dtype
    assert float(found) == pytest.approx(float(loss), rel=1e-4)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        own.cpu().double(), gradient, rtol=eps, atol=eps * float(gradient.abs().max())
    )


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(device, form):
    student, teacher = (one.to(device.torch_device, torch.float32) for one in sides(40))
    ours = leaf(student, torch.float32)
    outside = results(relational_loss(ours, teacher, form=form), ours)
    with portable_autocast(device.torch_type):
        inside = results(relational_loss(ours, teacher, form=form), ours)
    assert all(torch.equal(one, other) for one, other in zip(outside, inside, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_gradcheck(form):
    student, teacher = sides(5, dim=4)
    assert torch.autograd.gradcheck(
        lambda one: relational_loss(one, teacher, form=form), [leaf(student)]
    )


def test_learned_scales():
    student, teacher = sides(130)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    other = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    found = relational_loss(student, teacher, student_scale=scale, teacher_scale=other)
    truth = plain_relational(student, teacher, "kl", (scale, other))
    torch.testing.assert_close(found, truth)
    ours, theirs = (torch.autograd.grad(one, [scale])[0] for one in (found, truth))
    torch.testing.assert_close(ours, theirs)
    assert relational_loss(student, teacher, teacher_scale=other).requires_grad is False


@pytest.mark.parametrize("form", FORMS)
def test_tiles_and_chunks_do_not_matter(form, monkeypatch):
    student, teacher = sides(60)
    whole = relational_loss(student, teacher, form=form)
    monkeypatch.setattr(relations, "_ELEMENTS", 7 * 60)
    torch.testing.assert_close(relational_loss(student, teacher, form=form), whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_student_with_the_teachers_structure_loses_nothing(form):
    """A rotation keeps every relation; a longer one keeps distances relative to their mean."""
    _, teacher = sides(50)
    rotation, _ = torch.linalg.qr(torch.randn(17, 17, dtype=torch.float64))
    student = leaf(teacher @ rotation * (1.0 if form == "kl" else 2.5))
    loss, gradient = results(relational_loss(student, teacher, form=form), student)
    assert abs(float(loss)) < 1e-14
    assert float(gradient.abs().max()) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_gets_no_gradient_and_there_is_no_second_derivative(form):
    student, teacher = (leaf(one) for one in sides(6))
    loss = relational_loss(student, teacher, form=form)
    first, second = torch.autograd.grad(
        loss, [student, teacher], create_graph=True, allow_unused=True
    )
    assert second is None
    with pytest.raises(RuntimeError, match="have no second derivative"):
        first.sum().backward()


def test_views_that_are_not_contiguous():
    student, teacher = sides(65)
    for form in FORMS:
        found = relational_loss(student.T.contiguous().T, teacher.flip(1)[:, ::2], form=form)
        expected = plain_relational(student, teacher.flip(1)[:, ::2].contiguous(), form)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_code_gives_the_same(form):
    """Softmaxes trace whole; the others recompute by autograd itself, which breaks the graph."""
    student, teacher = sides(20)
    ours, theirs = leaf(student), leaf(student)
    compiled = torch.compile(relational_loss, fullgraph=form == "kl", backend="aot_eager")
    found = results(compiled(ours, teacher, form=form), ours)
    expected = results(relational_loss(theirs, teacher, form=form), theirs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "vectors"), [("kl", 4), ("distance", 0)])
def test_no_matrix_is_saved(form, vectors):
    """Beside the embeddings (centred ones too, for distances) only vectors."""
    for rows in (64, 2000):
        student, teacher = (one.float() for one in sides(rows))
        student.requires_grad_()
        kept: dict[int, int] = {}

        def note(one: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
            return one

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            relational_loss(student, teacher, form=form)
        embeddings = 4 * rows * (24 + 17)
        assert embeddings <= sum(kept.values()) <= 2 * embeddings + vectors * 4 * rows + 64


# --- presence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_absent_rows_take_no_part(form):
    student, teacher = sides(30)
    present = torch.rand(30) < 0.6
    with_holes = student.clone(), teacher.clone()
    for one in with_holes:
        one[~present] = math.nan
    ours, theirs = leaf(with_holes[0]), leaf(student[present])
    loss, gradient = results(relational_loss(ours, with_holes[1], form=form, present=present), ours)
    expected = results(plain_relational(theirs, teacher[present], form), theirs)
    torch.testing.assert_close(loss, expected[0])
    torch.testing.assert_close(gradient[present], expected[1])
    assert not gradient[~present].any()


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_matched_by_sample_number(form):
    """The teacher has its rows in another order, and both lack some."""
    student, teacher = sides(30)
    order = torch.randperm(30)[:24]
    ours = torch.arange(30)
    ours[[3, 8]] = -1
    theirs = order.clone()
    theirs[5] = -1
    both = [int(n) for n in order if n not in (3, 8) and n != order[5]]
    found = relational_loss(
        student, teacher[order], form=form, student_sample=ours, teacher_sample=theirs
    )
    torch.testing.assert_close(found, plain_relational(student[both], teacher[both], form))


def test_sample_numbers_that_meet_nowhere():
    student, teacher = sides(4)
    student = leaf(student)
    found = relational_loss(
        student, teacher, student_sample=torch.arange(4), teacher_sample=torch.arange(4) + 9
    )
    assert [float(one.abs().sum()) for one in results(found, student)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("form", "rows"), [(form, n) for form in FORMS for n in range(LEAST[form])]
)
def test_too_few_rows_are_zero_with_a_graph(form, rows):
    student, teacher = sides(rows)
    ours = leaf(student, torch.float32)
    loss, gradient = results(relational_loss(ours, teacher.float(), form=form), ours)
    assert float(loss) == 0.0
    assert gradient.shape == (rows, 24)
    assert not gradient.any()


# --- extreme and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(form, side, value):
    both = sides(12)
    both[side][3, 2] = value
    ours = leaf(both[0], torch.float32)
    loss, gradient = results(relational_loss(ours, both[1].float(), form=form), ours)
    assert bool(loss.isnan())
    assert bool(gradient.isnan().any())


@pytest.mark.parametrize("form", FORMS)
def test_zero_vectors_are_a_point_like_any_other(form):
    student, teacher = sides(12)
    student[4] = teacher[7] = 0.0
    ours, theirs = leaf(student), leaf(student)
    found = results(relational_loss(ours, teacher, form=form), ours)
    truth = results(plain_relational(theirs, teacher, form), theirs)
    for one, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("form", ["distance", "angle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_coincide_have_finite_gradients(form, dtype):
    student, teacher = (one.to(dtype) for one in sides(10))
    student[3] = student[8] = student[1]
    teacher[2] = teacher[6]
    ours, exact = leaf(student, dtype), leaf(student)
    loss, gradient = results(relational_loss(ours, teacher, form=form), ours)
    truth = results(relational_loss(exact, teacher.double(), form=form), exact)[1]
    torch.testing.assert_close(loss, plain_relational(student, teacher, form))
    assert bool(truth.isfinite().all())
    size = float(truth.abs().max())
    torch.testing.assert_close(gradient.double(), truth, rtol=0.0, atol=2e-3 * size)


@pytest.mark.parametrize("form", ["distance", "angle"])
def test_a_student_that_is_one_point_gets_no_gradient(form):
    _, teacher = sides(10)
    ours = leaf(torch.full((10, 4), 0.25))
    loss, gradient = results(relational_loss(ours, teacher, form=form), ours)
    assert 0.0 < float(loss) < 1.0
    assert not gradient.any()


def test_distances_of_a_batch_far_from_the_origin_stay_precise():
    """As those of a student that begins to collapse: in float32, a millionth of the norm apart."""
    student, teacher = (one.float() for one in sides(100))
    far = student * 2.0**-10 + 8.0  # exact but for the last bits
    near = far - 8.0
    found, exact = (relational_loss(one, teacher, form="distance") for one in (far, near))
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0.0)


def test_angles_of_many_rows_are_refused():
    student, teacher = sides(513)
    with pytest.raises(ValueError, match=r"angles of 513 rows are 513\^3 numbers.*at most 512"):
        relational_loss(student, teacher, form="angle")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"form": "cosine"}, ValueError, "form is one of kl, distance, angle, not 'cosine'"),
        ({"form": "angle", "student_scale": 1.0}, ValueError, "form='angle' has no scale"),
        ({"student": torch.zeros(3)}, ValueError, r"student is \[rows, dim\], not \[3\]"),
        ({"teacher": torch.zeros(5, 2)}, ValueError, "student has 4 rows and teacher 5"),
        ({"teacher": torch.zeros(4, 2).int()}, TypeError, "teacher .* not torch.int32"),
        ({"student_scale": -1}, ValueError, "student_scale must be positive and finite, not -1"),
        ({"present": torch.ones(4)}, TypeError, "present is a Boolean tensor"),
        ({"present": torch.ones(3).bool()}, ValueError, r"present is \[4\]"),
        ({"student_sample": torch.arange(4)}, ValueError, "by both student_sample and"),
        (
            {"student_sample": torch.arange(4), "teacher_sample": torch.zeros(4)},
            TypeError,
            "teacher_sample is an int64 tensor",
        ),
        (
            {"student_sample": torch.arange(4), "teacher_sample": torch.arange(3)},
            ValueError,
            r"teacher_sample is \[4\], one for each row, not \[3\]",
        ),
        (
            {"student_sample": torch.tensor([0, 2, 2, -1]), "teacher_sample": torch.arange(4)},
            ValueError,
            "student_sample has 2 more than once",
        ),
    ],
)
def test_bad_input(change, error, text):
    batch = {"student": torch.randn(4, 8), "teacher": torch.randn(4, 6)}
    with pytest.raises(error, match=text):
        relational_loss(**{**batch, **change})


# --- use ---------------------------------------------------------------------------------------


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of the similarities of all pairs."""
    place = torch.triu_indices(a.shape[0], a.shape[0], offset=1)
    ranks = [
        (F.normalize(one, dim=1) @ F.normalize(one, dim=1).T)[place[0], place[1]]
        .argsort()
        .argsort()
        .double()
        for one in (a, b)
    ]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("form", FORMS)
def test_a_student_of_one_modality_takes_over_the_structure_of_another(form):
    """Held-out samples, five seeds; the gain is at least ten of its standard errors.

    Both modalities are views of the same hidden causes. In what is heard, something of which text
    says nothing is louder than they are: an untrained student hears mostly that.
    """
    gains = []
    for seed in range(5):
        torch.manual_seed(seed)
        causes, noise = torch.randn(512, 5), 2.0 * torch.randn(512, 5)
        audio = torch.tanh(torch.cat([causes, noise], dim=1) @ torch.randn(10, 32) * 0.15)
        text = F.normalize(causes @ torch.randn(5, 12), dim=1)
        student = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 20))
        optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
        with torch.no_grad():
            before = rank_correlation(student(audio[384:]), text[384:])
        for _ in range(80):
            rows = torch.randperm(384)[: 48 if form == "angle" else 128]
            out = F.normalize(student(audio[rows]), dim=1)
            loss = relational_loss(out, text[rows], form=form)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            after = rank_correlation(student(audio[384:]), text[384:])
        gains.append(after - before)
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    assert statistics.mean(gains) > max(0.3, 10.0 * error)
