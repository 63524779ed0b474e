"""The frame of a kernel: what all threads do, and the roles of its warps."""

from __future__ import annotations

from dataclasses import replace

from xdsl.dialects.builtin import ArrayAttr, StringAttr, UnitAttr
from xdsl.ir import Attribute, Block, Region, SSAValue

from gemmir.dialects import hopper
from gemmir.dialects.gemm import ProductOp
from gemmir.dialects.hopper.types import GroupingName
from gemmir.passes.lowering.emitter import Emitter
from gemmir.passes.lowering.math_chunked import math_chunked
from gemmir.passes.lowering.math_in_place import math_in_place
from gemmir.passes.lowering.math_promoted import math_promoted
from gemmir.passes.lowering.math_stream import math_stream
from gemmir.passes.lowering.overlap import overlap
from gemmir.passes.lowering.parameters import Parameters, kernel_parameters, read_parameters, tensors
from gemmir.passes.lowering.plan import Plan
from gemmir.passes.lowering.producer import producer
from gemmir.passes.lowering.scales import scales_of_slots, scales_of_tiles
from gemmir.passes.lowering.storage import Storage, allocate
from gemmir.passes.lowering.store import store
from gemmir.passes.lowering.tiles import count_tiles
from gemmir.target import setmaxnreg_split


def _grouping(plan: Plan) -> dict[str, Attribute]:
    grouping = hopper.GroupingAttr(GroupingName(plan.problem.grouping.value))
    return {"grouping": grouping, "groups": hopper.base.count(plan.problem.groups)}


def _tail(tail_n: int | None, after: int | None) -> dict[str, Attribute]:
    if not tail_n or not after:
        return {}
    return {"tail": hopper.base.count(tail_n), "after": hopper.base.count(after)}


def build_kernel(plan: Plan, op: ProductOp, name: str) -> hopper.KernelOp:
    """The whole kernel for one matmul."""
    names, types, binds = zip(*kernel_parameters(plan, op), strict=True)
    block = Block(arg_types=types)
    for argument, hint in zip(block.args, names, strict=True):
        argument.name_hint = hint
    parameters, emit = read_parameters(block), Emitter(block)
    storage = _begin(emit, plan, parameters)
    with emit.inside(hopper.RolesOp) as (roles, _):
        with roles.inside(hopper.WarpgroupsOp, "group", number=plan.groups) as (math, (group,)):
            _math(math, plan, storage, group)
        with roles.inside(hopper.WarpgroupsOp, "service", number=1) as (service, _):
            _service(service, plan, parameters, storage)
    if plan.shares_loads:  # what a peer sends to a CTA that sums another part of K, that CTA waits for
        emit.op(hopper.ClusterSyncOp, release=True)
    inputs, output = tensors(op)
    return hopper.KernelOp.build(
        properties={
            "sym_name": StringAttr(name),
            "cluster": hopper.PairAttr(plan.cluster_m, plan.cluster_n),
            "tile": hopper.PairAttr(plan.block_m, plan.block_n),
            "columns": hopper.base.count(plan.problem.n),
            "depth": hopper.base.count(plan.problem.k),
            "threads": hopper.base.count((plan.groups + 1) * 128),
            "shared": hopper.base.count(plan.layout.total_bytes),
            "inputs": ArrayAttr(inputs),
            "output": output,
            "binds": ArrayAttr(binds),
            **({"balanced": UnitAttr()} if plan.schedule.balanced else {}),
            **_tail(plan.schedule.tail_n, plan.schedule.tail_after),
            **(_grouping(plan) if plan.grouped else {}),
            **({"split_k": hopper.base.count(plan.parts)} if plan.parts > 1 else {}),
        },
        regions=[Region(block)],
    )


def _begin(emit: Emitter, plan: Plan, parameters: Parameters) -> Storage:
    """What all threads do first: storage, barriers, and a meeting, after which they are used."""
    storage = allocate(emit, plan)
    if plan.swapped:
        emit.op(hopper.LaunchDependentsOp)
    emit.op(hopper.PrefetchMapsOp, parameters.loads)
    emit.op(hopper.InitBarriersOp, storage.barriers)
    if plan.swapped:
        overlap(emit, plan, parameters)
    storage = replace(storage, tile_count=count_tiles(emit, plan, parameters))
    emit.op(hopper.ClusterSyncOp if plan.shares_loads or plan.parts > 1 else hopper.CtaSyncOp)
    return storage


def _math(math: Emitter, plan: Plan, storage: Storage, group: SSAValue) -> None:
    """What each math warpgroup does."""
    if not plan.swapped:
        math.op(hopper.SetMaxRegistersOp, registers=setmaxnreg_split(plan.groups)[1], grow=True)
    if not plan.problem.promoted:
        return math_in_place(math, plan, storage, group)
    promoted = math_promoted if plan.chunk == 1 else math_chunked
    (math_stream if plan.swapped else promoted)(math, plan, storage, group)


def _service(service: Emitter, plan: Plan, parameters: Parameters, storage: Storage) -> None:
    """What the warps of the last warpgroup do."""
    if not plan.swapped:
        service.op(hopper.SetMaxRegistersOp, registers=setmaxnreg_split(plan.groups)[0])
    with service.inside(hopper.WarpOp, index=0) as (warp, _):
        producer(warp, plan, parameters, storage)
    with service.inside(hopper.WarpOp, index=1, elected=not plan.grouped) as (warp, _):
        store(warp, plan, parameters, storage)
    if plan.scales_apart:
        with service.inside(hopper.WarpOp, index=2) as (warp, _):
            (scales_of_tiles if plan.scales_of_tiles else scales_of_slots)(warp, plan, parameters, storage)
