"""Runs a whole kernel: one cluster after the other, each with its CTAs side by side."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmir.backends.simulator.agent import Agent, Grid, WgmmaGroup
from gemmir.backends.simulator.barriers import Meeting, fault
from gemmir.backends.simulator.execute import run_role
from gemmir.backends.simulator.machine import Cluster, Cta, Role
from gemmir.backends.simulator.memory import SharedMemory
from gemmir.backends.simulator.schedule import number_of_tiles
from gemmir.backends.simulator.split_k import Sending
from gemmir.backends.simulator.tensors import Bound, bind
from gemmir.dialects import hopper
from gemmir.dtypes import DTYPES, DType
from gemmir.errors import InputError
from gemmir.target import SM_90A, WARPS_PER_GROUP, balanced_clusters, launch_registers
from gemmir.tensor_core import add, addend_values, round_to

if TYPE_CHECKING:
    import torch

CLUSTERS = 2
"""Clusters of the simulated grid: few, so that each has several tiles."""


def simulate(
    kernel: hopper.KernelOp,
    tensors: Sequence[torch.Tensor | NDArray[Any]],
    m: int,
    *,
    seed: int = 0,
    clusters: int | None = None,
) -> torch.Tensor:
    """
    What `kernel` computes from `tensors` with this M, bit for bit, as a torch tensor on the CPU.

    `tensors`: one for each that the kernel takes, in order, in the shapes of the mathematics and any strides: torch
    tensors, or NumPy arrays of raw bits. `seed` decides in which order roles run, when TMA and WGMMA complete and when
    they read. `clusters`: size of the simulated grid (default: 2, but no more than there are cluster tiles).

    Raises `SyncError` (GMR-Y001) for a kernel that blocks for ever, uses what has not arrived, sends garbage to the
    result or breaks a rule of the hardware that the simulator watches, and `InputError` for tensors that do not fit.
    """
    import torch

    bits = simulate_bits(kernel, tensors, m, seed=seed, clusters=clusters)
    dtype = _result(kernel)
    return torch.from_numpy(bits.view(f"i{dtype.bytes}")).view(getattr(torch, dtype.torch_name))


def simulate_bits(
    kernel: hopper.KernelOp,
    tensors: Sequence[torch.Tensor | NDArray[Any]],
    m: int,
    *,
    seed: int = 0,
    clusters: int | None = None,
) -> NDArray[Any]:
    """`simulate`, but the result is a NumPy array of raw bits."""
    bound = bind(kernel, tensors, m)
    tiles = number_of_tiles(kernel, bound.segments)
    number = min(CLUSTERS if clusters is None else clusters, tiles)
    if kernel.grouping is not None and kernel.balanced is not None:  # in the kernel; else whoever launches does it
        number = balanced_clusters(tiles, max(1, number))
    if clusters is not None and clusters < 1:
        raise InputError("GMR-I009", f"clusters = {clusters}", rule="a grid has at least one cluster")
    if kernel.depth.value.data == 0:
        return _without_products(kernel, bound)  # such kernels are not launched
    chance = random.Random(seed)
    for index in range(number):
        _run_cluster(kernel, bound, Grid(index, number, bound.segments), chance)
    _check_complete(bound)
    return bound.output.bits


def _without_products(kernel: hopper.KernelOp, bound: Bound) -> NDArray[Any]:
    """Sums of no products: zeros, or C rounded."""
    if bound.addend is None:
        return bound.output.bits
    c = addend_values(bound.addend.bits, _result(kernel))
    return round_to(add(np.zeros_like(c), c), _result(kernel))


def _result(kernel: hopper.KernelOp) -> DType:
    return DTYPES[str(kernel.output.type.element_type)]


def _run_cluster(kernel: hopper.KernelOp, bound: Bound, grid: Grid, chance: random.Random) -> None:
    size = kernel.cluster_ctas
    warps = kernel.threads.value.data // 32
    shared = kernel.shared.value.data
    if shared > SM_90A.shared_bytes:
        raise InputError("GMR-I007", f"{shared} bytes of shared memory", rule=f"at most {SM_90A.shared_bytes}")
    ctas = [Cta(rank, SharedMemory(shared), Meeting(warps)) for rank in range(size)]
    kinds = (WgmmaGroup, Sending) if kernel.parts > 1 else (WgmmaGroup,)
    cluster = Cluster(ctas, Meeting(warps * size), chance, kinds)
    roles: list[Role] = []
    for cta in ctas:
        for agent in _agents(kernel, bound, cluster, cta, grid):
            roles.append(Role(agent.name, cta, agent.warps, run_role(agent)))
    cluster.run(roles)


def _agents(kernel: hopper.KernelOp, bound: Bound, cluster: Cluster, cta: Cta, grid: Grid) -> Iterator[Agent]:
    """One role a warpgroup, or one a warp where the warpgroup's code tells warps apart."""
    groups = kernel.threads.value.data // 128
    registers = launch_registers(kernel.threads.value.data)
    for warpgroup in range(groups):
        apart = _tells_warps_apart(kernel, warpgroup)
        for warp in range(WARPS_PER_GROUP) if apart else (0,):
            what = f"warp {warp} of warpgroup {warpgroup}" if apart else f"warpgroup {warpgroup}"
            yield Agent(
                name=f"CTA {cta.rank}, {what}",
                kernel=kernel,
                cluster=cluster,
                cta=cta,
                grid=grid,
                warps=1 if apart else WARPS_PER_GROUP,
                warpgroup=warpgroup,
                warp=warp,
                values=dict(bound.values),
                registers=registers,
            )


def _tells_warps_apart(kernel: hopper.KernelOp, warpgroup: int) -> bool:
    first = 0
    for roles in kernel.body.block.ops:
        for role in roles.body.block.ops if isinstance(roles, hopper.RolesOp) else ():
            assert isinstance(role, hopper.WarpgroupsOp)
            last = first + role.number.value.data
            if first <= warpgroup < last:
                return any(isinstance(op, hopper.WarpOp) for op in role.walk())
            first = last
    return False


def _check_complete(bound: Bound) -> None:
    """Every row of every segment is stored, and no other one."""
    written = bound.output.written
    assert written is not None
    wanted = np.zeros_like(written)
    own = written.ndim == 3
    for segment in bound.segments:
        matrix = wanted[segment.group] if own else wanted
        matrix[segment.first : segment.first + segment.rows] = segment.rows > 0
    if (written == wanted).all():
        return
    place = tuple(int(i) for i in np.argwhere(written != wanted)[0])
    if written[place]:
        raise fault(f"{bound.output.name}{list(place)} is stored, and belongs to no group")
    missing = int((wanted & ~written).sum())
    raise fault(f"{missing} elements of {bound.output.name} are never stored, the first is {list(place)}")
