"""Executes a role op by op: control flow and synchronisation here, the rest in `copies` and `compute`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdsl.dialects.arith import ConstantOp
from xdsl.dialects.builtin import IntegerAttr
from xdsl.ir import Block, Operation

from gemmir.backends.simulator import compute, copies, split_k
from gemmir.backends.simulator.agent import Agent, Cursor
from gemmir.backends.simulator.barriers import Mbarrier, Meeting, NamedBarrier, fault
from gemmir.backends.simulator.machine import Signal, Steps, Wait
from gemmir.backends.simulator.registers import Fragment, ScaleRegisters
from gemmir.backends.simulator.schedule import follow, number_of_tiles, own_tiles
from gemmir.dialects import hopper
from gemmir.dialects.hopper.barriers import TURN_THREADS, writers
from gemmir.dialects.hopper.control import enclosing
from gemmir.errors import UnsupportedError


def run_role(agent: Agent) -> Steps:
    """The whole kernel as this role sees it."""
    yield from _block(agent, agent.kernel.body.block)
    agent.check_end()


def _block(agent: Agent, block: Block) -> Steps:
    for op in agent.cluster.ops_of(block):
        kind = type(op)
        if (quiet := QUIET.get(kind)) is not None:
            quiet(agent, op)
        elif (act := ACTS.get(kind)) is not None:
            yield None
            act(agent, op)
        elif (steps := REGIONS.get(kind)) is not None:
            yield from steps(agent, op)
        elif (wait := WAITS.get(kind)) is not None:
            yield None
            yield wait(agent, op)
            if (after := AFTER.get(kind)) is not None:
                after(agent, op)
        else:
            raise UnsupportedError("GMR-U001", f"op {op.name[:60]} in a simulated kernel", rule="hopper ops only")


# Control flow


def _roles(agent: Agent, op: hopper.RolesOp) -> Steps:
    first = 0
    for role in op.body.block.ops:
        assert isinstance(role, hopper.WarpgroupsOp)
        last = first + role.number.value.data
        if first <= agent.warpgroup < last:
            for argument in role.body.block.args:
                agent.values[argument] = agent.warpgroup - first
            yield from _block(agent, role.body.block)
            return
        first = last


def _warp(agent: Agent, op: hopper.WarpOp) -> Steps:
    if agent.warps != 1:
        raise UnsupportedError("GMR-U001", "hopper.warp in a warpgroup that runs as one role")
    if agent.warp != op.index.value.data:
        return
    agent.elected = op.elected is not None
    yield from _block(agent, op.body.block)
    agent.elected = False


def _tiles(agent: Agent, op: hopper.TilesOp) -> Steps:
    grid = agent.grid
    mine = own_tiles(agent.kernel, op, grid.segments, agent.cta.rank, grid.index, grid.clusters)
    more = op.tail is None and follow(agent.kernel, grid.segments, grid.index, grid.clusters)
    for number, tile in enumerate(mine, 1):
        agent.last_tile = number == len(mine) and not more
        values = (tile.row, tile.column, tile.group, tile.begin, tile.end)
        agent.values |= dict(zip(op.body.block.args, values, strict=False))
        yield from _block(agent, op.body.block)


def _in_part(agent: Agent, op: hopper.InPartOp) -> Steps:
    if op.holds(agent.part):
        yield from _block(agent, op.body.block)


def _count_tiles(agent: Agent, op: hopper.CountTilesOp) -> None:
    """Clusters without a tile are not simulated: they would end here."""
    agent.values[op.result] = number_of_tiles(agent.kernel, agent.grid.segments)


def _end(agent: Agent, op: hopper.KBlocksOp) -> int:
    return op.end(0 if op.count is None else agent[op.count])


def _k_blocks(agent: Agent, op: hopper.KBlocksOp) -> Steps:
    for k in range(op.first.value.data, _end(agent, op), op.blocks):
        agent.values[op.body.block.args[0]] = k
        yield from _block(agent, op.body.block)


def _constant(agent: Agent, op: ConstantOp) -> None:
    if not isinstance(op.value, IntegerAttr):
        raise UnsupportedError("GMR-U001", "a constant that is not an integer in a simulated kernel")
    agent.values[op.result] = op.value.value.data


def _registers(agent: Agent, op: hopper.SetMaxRegistersOp) -> Wait:
    """Growing waits until the CTA has registers to spare."""
    more = (op.registers.value.data - agent.registers) * 32 * agent.warps
    cta = agent.cta
    return Wait(lambda: cta.free_registers >= more, lambda: f"{op.name} for {more} of {cta.free_registers} registers")


def _take_registers(agent: Agent, op: hopper.SetMaxRegistersOp) -> None:
    agent.cta.free_registers -= (op.registers.value.data - agent.registers) * 32 * agent.warps
    agent.registers = op.registers.value.data


# Storage


def _offset(agent: Agent, op: hopper.RingOp | hopper.StagingOp | hopper.BarriersOp) -> None:
    agent.values[op.result] = op.offset.value.data


def _cursor(agent: Agent, op: hopper.CursorOp) -> None:
    agent.values[op.result] = Cursor(op.result.type.dims[0])


def _next(agent: Agent, op: hopper.NextOp) -> None:
    agent.values[op.result] = agent[op.cursor].following()


def _fragment(agent: Agent, op: hopper.FragmentOp) -> None:
    made = Fragment(op.result.type.dims[1], op.result.name_hint or "a fragment")
    agent.fragments.append(made)
    agent.values[op.result] = made


def _scales(agent: Agent, op: hopper.ScalesOp) -> None:
    agent.values[op.result] = ScaleRegisters(*op.result.type.dims)


# Barriers


def _init_barriers(agent: Agent, op: hopper.InitBarriersOp) -> None:
    if agent.warpgroup != 0:
        return  # the CTA's first thread does it
    for value in op.barriers:
        owner = value.owner
        assert isinstance(owner, hopper.BarriersOp)
        stages, groups = owner.result.type.dims
        for i in range(stages * groups):
            name = f"{value.name_hint or 'barrier'}[{i // groups}, {i % groups}] of CTA {agent.cta.rank}"
            address = agent[value] + 8 * i
            agent.cta.barriers[address] = Mbarrier(name, owner.arrivals.value.data)


def _wait(agent: Agent, op: hopper.WaitOp) -> Wait:
    if op.unless_last is not None:
        loop = enclosing(op, hopper.KBlocksOp)
        if agent.last_tile and (loop is None or agent[loop.body.block.args[0]] + loop.blocks >= _end(agent, loop)):
            return Wait(lambda: True, lambda: op.name)
    return _wait_parity(agent, op, agent[op.cursor].parity)


def _acquire(agent: Agent, op: hopper.AcquireOp) -> Wait:
    return _wait_parity(agent, op, agent[op.cursor].parity ^ 1)


def _wait_parity(agent: Agent, op: hopper.WaitOp | hopper.AcquireOp, parity: int) -> Wait:
    address = agent.barrier_address(op.barriers, op.cursor, op.group)
    return agent.wait_for(agent.cta.barrier(address), parity, op.name)


def _arrive(agent: Agent, op: hopper.ArriveOp) -> None:
    agent.publish()
    agent.cta.barrier(agent.barrier_address(op.barriers, op.cursor, op.group)).arrive(agent.warps)


def _expect(agent: Agent, op: hopper.ExpectOp) -> None:
    agent.publish()
    barrier = agent.cta.barrier(agent.barrier_address(op.barriers, op.cursor, op.group))
    for _ in range(agent.warps):
        barrier.arrive(1, op.bytes.value.data)


def _release(agent: Agent, op: hopper.ReleaseOp) -> None:
    agent.publish()
    address, peers = agent.barrier_address(op.barriers, op.cursor, op.group), op.peers.value.data
    if peers > len(agent.cluster.ctas):
        raise fault(f"{op.name} to {peers} CTAs in a cluster of {len(agent.cluster.ctas)}", "peers that exist")
    cluster = agent.kernel.cluster.m.data, agent.kernel.cluster.n.data
    ranks = [agent.cta.rank] if peers == 1 else writers(agent.cta.rank, *cluster)
    for rank in ranks:
        cta = agent.cluster.ctas[rank]
        if cta is agent.cta:
            cta.barrier(address).arrive(agent.warps)
            continue
        for _ in range(agent.warps):
            agent.cluster.start(Signal(cta, address, 1))


def _take_turn(agent: Agent, op: hopper.TakeTurnOp) -> Wait:
    group = int(agent[op.group])
    if op.only is not None and group != op.only.value.data:
        return Wait(lambda: True, lambda: op.name)
    barrier = _named(agent, 1 + group)
    generation = barrier.generation
    barrier.arrive(32 * agent.warps, TURN_THREADS)
    return Wait(
        lambda: barrier.generation > generation,
        lambda: f"{op.name}, {barrier.arrived} of {barrier.threads} threads at named barrier {barrier.number}",
    )


def _pass_turn(agent: Agent, op: hopper.PassTurnOp) -> None:
    group = int(agent[op.group])
    if op.only is not None and group != op.only.value.data:
        return
    agent.publish()
    _named(agent, 1 + (group + 1) % op.groups.value.data).arrive(32 * agent.warps, TURN_THREADS)


def _named(agent: Agent, number: int) -> NamedBarrier:
    return agent.cta.named.setdefault(number, NamedBarrier(number, TURN_THREADS))


def _meet(agent: Agent, meeting: Meeting, op: Operation) -> Wait:
    agent.sync_warp()
    agent.publish()
    generation = meeting.generation
    meeting.arrive(agent.warps)
    return Wait(
        lambda: meeting.generation > generation,
        lambda: f"{op.name}, {meeting.arrived} of {meeting.warps} warps are there",
    )


def _cluster_sync(agent: Agent, op: hopper.ClusterSyncOp) -> Wait:
    """A release also waits for arrivals on their way to peers: they find their target alive."""
    meeting = _meet(agent, agent.cluster.meeting, op)
    if op.release is None:
        return meeting
    return Wait(lambda: meeting.ready() and not agent.cluster.signals_under_way, meeting.what)


def _nothing(agent: Agent, op: Operation) -> None:
    pass


Act = Callable[[Agent, Any], None]

QUIET: dict[type[Operation], Act] = {
    ConstantOp: _constant,
    hopper.AdvanceOp: lambda agent, op: agent[op.cursor].advance(),
    hopper.BarriersOp: _offset,
    hopper.CountTilesOp: _count_tiles,
    hopper.BlockAheadOp: copies.block_ahead,
    hopper.CopyScalesOp: copies.copy_scales,
    hopper.CursorOp: _cursor,
    hopper.FragmentOp: _fragment,
    hopper.GroupBlockOp: copies.group_block,
    hopper.GroupPointerOp: copies.group_pointer,
    hopper.MoveScalesOp: compute.move_scales,
    hopper.NextOp: _next,
    hopper.FirstTileOp: _nothing,
    hopper.LaunchDependentsOp: _nothing,
    hopper.PrefetchMapsOp: _nothing,
    hopper.WaitForGridOp: _nothing,
    hopper.FirstBlockOp: split_k.first_block,
    hopper.PartBlockOp: split_k.part_block,
    hopper.PromoteOp: compute.promote_wave,
    hopper.RingOp: _offset,
    hopper.ScalesOp: _scales,
    hopper.StagingOp: _offset,
    hopper.WgmmaFenceOp: compute.wgmma_fence,
    hopper.ZeroOp: compute.zero,
}
"""Ops that concern nobody but the role itself."""

ACTS: dict[type[Operation], Act] = {
    hopper.AddSumsOp: split_k.add_sums,
    hopper.ArriveOp: _arrive,
    hopper.ExpectOp: _expect,
    hopper.FenceProxyAsyncOp: lambda agent, op: agent.fence(),
    hopper.FetchScalesOp: copies.fetch_scales,
    hopper.GrantOp: split_k.grant,
    hopper.InitBarriersOp: _init_barriers,
    hopper.LoadScalesOp: compute.load_scales,
    hopper.NextScalesOp: copies.next_scales,
    hopper.PassTurnOp: _pass_turn,
    hopper.PromoteBlockOp: compute.promote_block,
    hopper.PromoteColumnsOp: compute.promote_columns,
    hopper.PutScalesOp: copies.put_scales,
    hopper.ReleaseOp: _release,
    hopper.SendSumsOp: split_k.send_sums,
    hopper.StageFragmentOp: compute.stage_fragment,
    hopper.StartScalesOp: copies.start_scales,
    hopper.StoreCommitOp: copies.store_commit,
    hopper.StoreRowsOp: copies.store_rows,
    hopper.SyncWarpOp: lambda agent, op: agent.sync_warp(),
    hopper.TmaFillOp: copies.tma_fill,
    hopper.TmaLoadOp: copies.tma_load,
    hopper.TmaStoreOp: copies.tma_store,
    hopper.WgmmaCommitOp: compute.wgmma_commit,
    hopper.WgmmaOp: compute.multiply,
}
"""Ops before which others may go first."""

WAITS: dict[type[Operation], Callable[[Agent, Any], Wait]] = {
    hopper.AcquireOp: _acquire,
    hopper.ClusterSyncOp: _cluster_sync,
    hopper.CtaSyncOp: lambda agent, op: _meet(agent, agent.cta.meeting, op),
    hopper.SetMaxRegistersOp: _registers,
    hopper.StoreWaitReadOp: copies.store_wait_read,
    hopper.TakeTurnOp: _take_turn,
    hopper.WaitOp: _wait,
    hopper.WgmmaWaitOp: compute.wgmma_wait,
}

AFTER: dict[type[Operation], Act] = {
    hopper.SetMaxRegistersOp: _take_registers,
    hopper.StoreWaitReadOp: copies.store_wait_done,
    hopper.WgmmaWaitOp: compute.wgmma_done,
}
"""What follows when the wait is over."""

REGIONS: dict[type[Operation], Callable[[Agent, Any], Steps]] = {
    hopper.InPartOp: _in_part,
    hopper.KBlocksOp: _k_blocks,
    hopper.RolesOp: _roles,
    hopper.TilesOp: _tiles,
    hopper.WarpOp: _warp,
}
