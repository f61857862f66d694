"""Which part of a whole a value is, and when what a collective writes is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from accel.numerics import record
from accel.numerics.capture.collectives import group_argument
from accel.numerics.capture.contents import Contents
from accel.numerics.capture.sharding import Sharding
from accel.numerics.capture.sharding_rows import Batch, Rows
from accel.numerics.capture.sharding_wrappers import inner, placed
from accel.numerics.capture.values import Values
from accel.numerics.storage.entries import Line, Shard, Source, Value
from accel.numerics.storage.writer import Writer
from accel_kernels.sketch import sketch
from tests.numerics.numerics_recordings import MANIFEST
from tests.numerics.numerics_zoo import one_thread  # noqa: F401


class Taken:
    """Values and the lines that they emit."""

    def __init__(self, path: Path, rows: Rows | None = None) -> None:
        self.lines: list[Line] = []
        step = Writer(path / "run", MANIFEST).start_step(0)
        self.values = Values(Contents(step, self.lines.append), self.lines.append, rows)

    def of(self, number: int) -> list[Value]:
        return [x for x in self.lines if isinstance(x, Value) and x.id == number]


@pytest.fixture
def taken(tmp_path: Path) -> Taken:
    return Taken(tmp_path)


# --- what arrives later ---------------------------------------------------------------------------


def test_a_collective_is_looked_at_when_its_result_is_read(taken: Taken) -> None:
    tensor = torch.zeros(4)
    value = taken.values.written(tensor, arrives_later=True)
    view = tensor.view(2, 2)
    assert taken.values.of(tensor, is_read=False) == value  # a module's boundary
    taken.values.add(view, base=value)
    assert taken.of(value) == []
    tensor.fill_(3.0)  # it arrives
    taken.values.of(view)  # who reads a view reads it
    (line,) = taken.of(value)
    assert line.sketch == sketch(torch.full((4,), 3.0))


def test_a_part_of_what_a_collective_writes_is_read(taken: Taken) -> None:
    tensor = torch.zeros(8)
    value = taken.values.written(tensor, arrives_later=True)
    other = taken.values.written(torch.zeros(8), arrives_later=True)
    tensor.fill_(1.0)
    taken.values.of(tensor[2:4])
    assert [line.sketch for line in taken.of(value)] == [sketch(torch.ones(8))]
    assert taken.of(other) == []


def test_a_collective_that_another_operator_finishes(taken: Taken) -> None:
    """gloo copies the result of a scatter to where it belongs."""
    tensor = torch.zeros(4)
    value = taken.values.written(tensor, arrives_later=True)
    assert taken.values.before(tensor) == value
    tensor.copy_(torch.arange(4.0))
    assert taken.values.written(tensor) == value
    assert [line.sketch for line in taken.of(value)] == [sketch(torch.arange(4.0))]


def test_what_nobody_reads_is_looked_at_in_the_end(taken: Taken) -> None:
    tensor = torch.zeros(4)
    value = taken.values.written(tensor, arrives_later=True)
    tensor.fill_(2.0)
    taken.values.close()
    assert [line.sketch for line in taken.of(value)] == [sketch(tensor)]


def test_memory_that_was_freed_is_not_looked_at(taken: Taken) -> None:
    """fully_shard frees what it has gathered and keeps the tensor."""
    tensor = torch.zeros(4)
    value = taken.values.written(tensor, arrives_later=True)
    tensor.untyped_storage().resize_(0)
    taken.values.close()
    (line,) = taken.of(value)
    assert line.sketch is None
    assert line.skipped == "its memory was freed before anybody looked at it"


def test_memory_that_is_filled_again_holds_another_value(taken: Taken) -> None:
    tensor = torch.arange(4.0)
    first = taken.values.of(tensor)
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(16)
    tensor.copy_(torch.ones(4))
    second = taken.values.written(tensor)
    assert second != first
    assert taken.values.of(tensor) == second
    assert [taken.of(v)[0].sketch for v in (first, second)] == [
        sketch(torch.arange(4.0)), sketch(torch.ones(4)),
    ]  # fmt: skip


def test_elements_are_kept_when_they_are_there(taken: Taken) -> None:
    tensor = torch.zeros(4)
    value = taken.values.written(tensor, arrives_later=True)
    taken.values.keep(value, tensor)
    assert taken.values.is_kept(value)
    assert taken.of(value) == []
    tensor.fill_(1.0)
    taken.values.of(tensor)
    blobs = [line.blob for line in taken.of(value)]
    again = taken.values.of(torch.ones(4))
    taken.values.keep(again, torch.ones(4))
    assert blobs == [None, taken.of(again)[-1].blob]


# --- parts of known values ------------------------------------------------------------------------


def test_a_known_value_that_is_a_part_gets_a_line_of_its_own(taken: Taken) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    value = taken.values.of(tensor)
    shard = Shard((4, 3), (2, 0))
    part = taken.values.of(tensor, shard=shard)
    assert part != value
    (line,) = taken.of(part)
    assert (line.base, line.shard) == (value, shard)
    assert line.sketch == sketch(tensor, (shard.shape, shard.offset))
    assert taken.values.of(tensor, shard=shard) == part
    assert taken.values.of(tensor) == value


def test_a_known_value_that_is_a_copy_only_says_so(taken: Taken) -> None:
    tensor = torch.arange(6.0)
    value = taken.values.of(tensor)
    shard = Shard((6,), (0,))
    assert taken.values.of(tensor, shard=shard) == value
    first, second = taken.of(value)
    assert (first.shard, second.shard) == (None, shard)
    assert second.sketch is None  # it is there already


def test_a_slice_that_is_a_copy_gets_a_sketch_of_its_own(taken: Taken) -> None:
    """A gradient in a bucket of DistributedDataParallel."""
    bucket = torch.arange(10.0)
    base = taken.values.of(bucket)
    view = taken.values.add(bucket[2:5], base=base)
    assert taken.values.of(bucket[2:5], shard=Shard((3,), (0,))) == view
    assert taken.of(view)[-1].sketch == sketch(bucket[2:5].clone())


def test_the_same_elements_in_another_shape_are_the_same_value(taken: Taken) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    value = taken.values.of(tensor)
    flat = taken.values.of(tensor.view(6))
    assert taken.of(flat)[0].base == value
    across = taken.values.of(tensor.t())  # contiguous it is not
    assert taken.of(across)[0].base is None
    assert {x.value for x in taken.lines if isinstance(x, Source)} == {value, flat, across}


# --- rows of the batch ----------------------------------------------------------------------------


@pytest.fixture
def rows() -> Rows:
    found = Rows()
    found.begin(Batch(count=2, first=4, total=6))
    return found


def test_rows_are_followed_through_operators_and_views(rows: Rows) -> None:
    x = torch.zeros(2, 5, 3)
    assert rows.note(0, x, rows.of_source(x)) == Shard((6, 5, 3), (4, 0, 0))  # type: ignore[arg-type]
    flat = x.view(10, 3)
    batch = rows.of_view(flat, x, 0)
    assert batch is not None
    rows.note(1, flat, batch)
    product = torch.zeros(10, 7)
    batch = rows.of_output(product, [1, 9])
    assert batch is not None
    assert rows.note(2, product, batch) == Shard((30, 7), (20, 0))
    heads = product.view(2, 5, 7).transpose(1, 2)
    assert rows.of_view(heads, product, 2) is None  # not of the product itself
    assert rows.of_view(product.view(2, 5, 7), product, 2) == batch


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.flip(0),
        lambda x: x.sum(0),
        lambda x: torch.cat([x, x]),
        lambda x: x.permute(2, 0, 1),
        lambda x: x[0],
        lambda x: x.sum(),
    ],
)
def test_what_is_no_longer_rows_is_not_taken_for_them(rows: Rows, change: object) -> None:
    x = torch.zeros(2, 5, 3)
    rows.note(0, x, rows.of_source(x))  # type: ignore[arg-type]
    made: Tensor = change(x)  # type: ignore[operator]
    is_view = made.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    found = rows.of_view(made, x, 0) if is_view else rows.of_output(made, [0])
    # As many rows in another order are the program's own doing, and differ in both runs alike.
    assert (found is not None) == (not is_view and made.shape[:1] == (2,))


def test_parts_of_rows_are_parts_of_the_whole_batch(tmp_path: Path, rows: Rows) -> None:
    """Tensor parallelism inside of data parallelism."""
    taken, x = Taken(tmp_path, rows), torch.randn(2, 5, 3)
    given = taken.values.of(x, "input", "0")
    taken.values.is_within_wrapper = True
    columns, addend, other = torch.randn(2, 5, 4), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    made = []
    for tensor in (columns, addend, other):
        made.append(taken.values.add(tensor, batch=taken.values.output_batch(tensor, [given])))
    taken.values.placed(columns, Shard((2, 5, 8), (0, 0, 4)))
    taken.values.placed(addend, Shard((2, 5, 3), (0, 0, 0), partial=True))
    taken.values.placed(other, Shard((4, 5, 3), (2, 0, 0)))  # the rows themselves are divided
    taken.values.leave_wrapper()
    assert [taken.of(value)[0].shard for value in made] == [
        Shard((6, 5, 8), (4, 0, 4)), Shard((6, 5, 3), (4, 0, 0), partial=True), None,
    ]  # fmt: skip
    boundary = taken.values.of(columns, is_read=False, shard=Shard((2, 5, 8), (0, 0, 4)))
    assert boundary == made[0]


def test_only_what_has_as_many_rows_can_be_of_the_batch(rows: Rows) -> None:
    assert rows.of_source(torch.zeros(3, 2)) is None
    assert rows.of_source(torch.tensor(1.0)) is None
    assert Rows().of_source(torch.zeros(2)) is None


# --- what the caller says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [((2, 2), ValueError, "0 <= index < count"), ((-1, 2), ValueError, "0 <= index < count"),
     (("0", 2), TypeError, "two integers"), ((0, 1, 2), TypeError, "two integers")],
)  # fmt: skip
def test_no_such_part_of_a_batch(
    tmp_path: Path, given: object, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        record(nn.Linear(2, 2), tmp_path / "run", data_parallel=given)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_rows_are_of_data_parallel_runs_only(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with record(model, tmp_path / "run") as recorder:
        with pytest.raises(ValueError, match="data-parallel runs only"):
            recorder.rows(0, 4)
        model(torch.ones(2, 2))


def test_rows_that_cannot_be(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with record(model, tmp_path / "run", data_parallel=(1, 2)) as recorder:
        with pytest.raises(ValueError, match="first row and the number of all rows"):
            recorder.rows(5, 4)
        recorder.rows(3, 4)
        with pytest.raises(ValueError, match="called with 2 rows"):
            model(torch.ones(2, 2))
        model(torch.ones(2, 2))  # what was stated is forgotten


# --- DTensors -------------------------------------------------------------------------------------


@pytest.fixture
def second_of_two() -> Iterator[None]:
    """This process as rank 1 of 2, of which the other is not there: no collective may run."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("second_of_two")
def test_where_the_part_of_a_dtensor_belongs() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate
    from torch.distributed.tensor import Shard as On

    mesh = init_device_mesh("cpu", (2,))

    def where(local: Tensor, placement: object, shape: tuple[int, ...]) -> Shard | None:
        stride = torch.empty(shape, device="meta").stride()
        tensor = DTensor.from_local(
            local, mesh, [placement], run_check=False, shape=torch.Size(shape), stride=stride
        )  # type: ignore[list-item]
        assert inner(tensor) is tensor._local_tensor
        return placed(tensor)

    assert where(torch.zeros(2, 4), On(0), (5, 4)) == Shard((5, 4), (3, 0))  # 3 and 2 rows
    assert where(torch.zeros(5, 2), On(1), (5, 4)) == Shard((5, 4), (0, 2))
    assert where(torch.zeros(0, 4), On(0), (1, 4)) == Shard((1, 4), (1, 0))  # has none
    assert where(torch.zeros(5, 4), Replicate(), (5, 4)) == Shard((5, 4), (0, 0))
    assert where(torch.zeros(5, 4), Partial(), (5, 4)) == Shard((5, 4), (0, 0), partial=True)
    assert where(torch.zeros(5, 4), Partial("avg"), (5, 4)) is None  # no addend of a sum
    assert placed(torch.zeros(3)) is None


@pytest.mark.usefixtures("second_of_two")
def test_addends_of_which_there_are_copies_are_not_added() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = init_device_mesh("cpu", (1, 2))
    one = DTensor.from_local(torch.zeros(3), mesh, [Replicate(), Partial()], run_check=False)
    two = DTensor.from_local(torch.zeros(3), mesh, [Partial(), Replicate()], run_check=False)
    assert placed(one) == Shard((3,), (0,), partial=True)
    assert placed(two) is None


@pytest.mark.usefixtures("second_of_two")
def test_a_run_finds_out_its_place() -> None:
    sharding = Sharding.of_run(nn.Linear(2, 2), None)
    assert (sharding.rank, sharding.world, sharding.member) == (1, 2, None)
    wrapped = nn.Linear(2, 2)
    assert Sharding.of_run(wrapped, (1, 2)).member == (1, 2)
    group = distributed.distributed_c10d._get_default_group()
    argument = group_argument("process_group", group)
    assert argument is not None
    assert argument.text == "ranks 0, 1"
    assert group_argument("input", group) is None


def test_stated_copies_are_of_data_parallel_runs_only() -> None:
    tensor = torch.zeros(2, 3)
    assert Sharding().of_copy(tensor) is None
    assert Sharding(1, 2).of_copy(tensor) == Shard((2, 3), (0, 0))
