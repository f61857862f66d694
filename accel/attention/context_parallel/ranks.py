"""Where a process stands among those that share a sequence, and whether they all want the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed

from accel.distributed import gather_rows
from accel.errors import BackendError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from accel.attention.context_parallel.sharding import SequenceLayout

METHODS = ("ring", "ulysses", "ring+ulysses")
_BOTH = ("ring", "ulysses")


@dataclass(frozen=True)
class RankGrid:
    """The ranks that share a sequence: a ring of groups, in each of which heads are exchanged.

    Rank `(r, u)` is rank `r * ulysses_size + u` of a layout.

    Attributes:
        ring: The group with the same place `u`; None: all processes.
        ring_rank: `r`.
        ring_size: 1 for Ulysses alone.
        ulysses: The group with the same place `r`; None: all processes.
        ulysses_rank: `u`.
        ulysses_size: 1 for a ring alone.
    """

    ring: ProcessGroup | None
    ring_rank: int
    ring_size: int
    ulysses: ProcessGroup | None
    ulysses_rank: int
    ulysses_size: int

    @classmethod
    def of(cls, mesh: DeviceMesh | ProcessGroup | None, method: str | None = None) -> RankGrid:
        """The grid of a mesh or a group.

        Raises:
            TypeError: It is neither.
            ValueError: `torch.distributed` is not set up, or the mesh does not suit the method.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError(
                "context parallelism runs on torch.distributed: call init_process_group first, or "
                "accel.segmented_attention in a single process"
            )
        from torch.distributed import ProcessGroup
        from torch.distributed.device_mesh import DeviceMesh

        if isinstance(mesh, DeviceMesh) and mesh.ndim == 2:
            return _two_dimensional(mesh, method)
        if method == "ring+ulysses":
            raise ValueError("method 'ring+ulysses' needs a DeviceMesh of two dimensions")
        if isinstance(mesh, DeviceMesh):
            if mesh.ndim != 1:
                raise ValueError(
                    f"a mesh has one dimension, or two for 'ring+ulysses', not {mesh.ndim}; take a "
                    "part of it by name: mesh['ring', 'ulysses']"
                )
            mesh = mesh.get_group()
        if mesh is not None and not isinstance(mesh, ProcessGroup):
            if mesh == distributed.GroupMember.NON_GROUP_MEMBER:  # what new_group gives to others
                raise ValueError("this process is not in the group that is given")
            raise TypeError(f"mesh must be a DeviceMesh or a group, not {type(mesh).__name__}")
        rank, size = distributed.get_rank(mesh), distributed.get_world_size(mesh)
        if method == "ulysses":
            return cls(mesh, 0, 1, mesh, rank, size)
        return cls(mesh, rank, size, mesh, 0, 1)

    @property
    def rank(self) -> int:
        """This process's place in a layout."""
        return self.ring_rank * self.ulysses_size + self.ulysses_rank

    @property
    def size(self) -> int:
        """All ranks."""
        return self.ring_size * self.ulysses_size

    def check_layout(self, layout: SequenceLayout, name: str = "layout") -> None:
        """See that a layout is for as many ranks.

        Raises:
            ValueError: It is not.
        """
        if layout.ranks != self.size:
            raise ValueError(f"{name} is for {layout.ranks} ranks, and there are {self.size}")


def _two_dimensional(mesh: DeviceMesh, method: str | None) -> RankGrid:
    if method not in (None, "ring+ulysses"):
        raise ValueError(
            f"method {method!r} needs a mesh of one dimension: take it by name, mesh[{method!r}]"
        )
    names = mesh.mesh_dim_names or ()
    ring, ulysses = (names.index(n) for n in _BOTH) if set(names) == set(_BOTH) else (0, 1)
    if mesh.get_coordinate() is None:
        raise ValueError("this process is not in the mesh that is given")
    return RankGrid(
        mesh.get_group(ring), mesh.get_local_rank(ring), mesh.size(ring),
        mesh.get_group(ulysses), mesh.get_local_rank(ulysses), mesh.size(ulysses),
    )  # fmt: skip


class Stance(NamedTuple):
    """What a rank is about to do.

    Attributes:
        terms: What must be the same everywhere, by name, in words.
        problem: Why it cannot; None if it can.
        seed: Of dropout, if the first rank's is to hold for all.
    """

    terms: Mapping[str, str]
    problem: Exception | None
    seed: int = 0


def agree(grid: RankGrid, stance: Stance) -> int:
    """Exchange what every rank is about to do, before any waits for what another never sends.

    Costs one collective of 32 bytes a rank (two on a grid of two dimensions); on groups without a
    CPU backend it waits for the device.

    Returns:
        The seed of the first rank.

    Raises:
        ValueError: Ranks differ, or another cannot take part; the same on every rank.
        TypeError: This rank cannot take part.
        BackendError: No kernel can do this rank's part, or another's.
    """
    text = "\n".join(f"{name}: {term}" for name, term in stance.terms.items())
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    halves = [int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8)]
    row = torch.tensor([[int(stance.problem is None), *halves, stance.seed]], dtype=torch.int64)
    rows = _from_all(grid, row).tolist()
    if all(other[0] for other in rows) and len({tuple(other[1:3]) for other in rows}) == 1:
        return int(rows[0][3])
    problem = stance.problem
    said = None if problem is None else f"{type(problem).__name__}: {problem}"
    is_machine = isinstance(problem, BackendError)
    everyone = _objects_from_all(grid, (dict(stance.terms), said, is_machine))
    if problem is not None:
        raise problem
    _raise(everyone)
    raise AssertionError("ranks disagree in nothing they can name")


def _raise(everyone: list[tuple[dict[str, str], str | None, bool]]) -> None:
    for rank, (_, said, is_machine) in enumerate(everyone):
        if said is not None:
            kind = BackendError if is_machine else ValueError
            raise kind(f"rank {rank} cannot take part: {said}")
    first = everyone[0][0]
    for rank, (terms, _, _) in enumerate(everyone):
        for name in {**first, **terms}:
            ours, theirs = first.get(name), terms.get(name)
            if ours != theirs:
                raise ValueError(
                    f"every rank must be called alike, but {name} is {ours} on rank 0 and {theirs} "
                    f"on rank {rank}"
                )


def _from_all(grid: RankGrid, row: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in the order of a layout."""
    rows = row
    for group, size in ((grid.ulysses, grid.ulysses_size), (grid.ring, grid.ring_size)):
        if size > 1:
            sent = rows.reshape(1, -1).to(_exchange_device(group))
            rows = gather_rows(sent, group).view(-1, row.shape[1])
    return rows


def _objects_from_all(grid: RankGrid, item: Any) -> list[Any]:
    found = [item]
    for group, size in ((grid.ulysses, grid.ulysses_size), (grid.ring, grid.ring_size)):
        if size > 1:
            received: list[Any] = [None] * size
            distributed.all_gather_object(received, found, group=group)
            found = [one for part in received for one in part]
    return found


def _exchange_device(group: ProcessGroup | None) -> torch.device:
    """The CPU, if the group serves it, since that waits for no device."""
    kinds = [part.split(":")[0] for part in distributed.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
