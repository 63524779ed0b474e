"""Prints how the roles of a kernel wait for one another."""

from __future__ import annotations

from gemmir.backends.cuda.printing.base import Printing
from gemmir.dialects import hopper
from gemmir.dialects.hopper.barriers import TURN_THREADS
from gemmir.dialects.hopper.base import number
from gemmir.dialects.hopper.control import enclosing
from gemmir.errors import UnsupportedError


class PrintsBarriers(Printing):
    """How roles wait for one another."""

    def init_barriers(self, op: hopper.InitBarriersOp) -> None:
        with self.out.block("if (threadIdx.x == 0)"):
            for value in op.barriers:
                owner = value.owner
                if not isinstance(owner, hopper.BarriersOp):
                    raise UnsupportedError("GMR-U001", "barriers that hopper.barriers did not make")
                stages, groups = owner.result.type.dims
                init = f"{self.need('mbarrier_init')}({self.out[value]} + i * 8, {number(owner.arrivals)});"
                self.out.line(f"for (int i = 0; i < {stages * groups}; ++i) {init}")
            self.call("fence_mbarrier_init")

    def wait(self, op: hopper.WaitOp) -> None:
        function = self.need("mbarrier_wait" if op.of_peer is None else "mbarrier_wait_peer")
        wait = f"{function}({self.barrier(op)}, {self.out[op.cursor]}.parity);"
        if op.unless_last is None:
            return self.out.line(wait)
        loop = enclosing(op, hopper.KBlocksOp)
        inside = ""
        if loop is not None:
            inside = f"{self.out[loop.body.block.args[0]]} + {loop.blocks} < {self.end_of(loop)} || "
        self.out.line(f"if ({inside}!tiles.last()) {wait}")

    def acquire(self, op: hopper.AcquireOp) -> None:
        self.call("mbarrier_wait", self.barrier(op), f"{self.out[op.cursor]}.parity ^ 1")

    def arrive(self, op: hopper.ArriveOp) -> None:
        self.call("mbarrier_arrive", self.barrier(op))

    def expect(self, op: hopper.ExpectOp) -> None:
        self.call("mbarrier_expect", self.barrier(op), str(number(op.bytes)))

    def release(self, op: hopper.ReleaseOp) -> None:
        peers = number(op.peers)
        if peers == 1:
            return self.out.line(f"if (lane == 0) {self.need('mbarrier_arrive')}({self.barrier(op)});")
        rank = "lane" if min(self.cluster) == 1 else "lane < 2 ? rank / 2 * 2 + lane : rank ^ 2"  # 2x2: row, column
        self.out.line(f"if (lane < {peers}) {self.need('mbarrier_arrive_peer')}({self.barrier(op)}, {rank});")

    def turn(self, op: hopper.TakeTurnOp | hopper.PassTurnOp, call: str) -> None:
        only = "" if op.only is None else f"if ({self.out[op.group]} == {number(op.only)}) "
        self.out.line(f"{only}{call};")

    def take_turn(self, op: hopper.TakeTurnOp) -> None:
        self.turn(op, f"{self.need('named_barrier_sync')}(1 + {self.out[op.group]}, {TURN_THREADS})")

    def pass_turn(self, op: hopper.PassTurnOp) -> None:
        following = f"({self.out[op.group]} + 1) % {number(op.groups)}"
        self.turn(op, f"{self.need('named_barrier_arrive')}(1 + {following}, {TURN_THREADS})")
