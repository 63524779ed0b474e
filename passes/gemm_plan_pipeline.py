"""
`gemm-plan-pipeline`: choose how weight scales are fetched, in how many slices a tile leaves, and how many stages the
operand ring has.

    schedule <..., raster = along_m, group = 8>                                                // before
    schedule <..., group = 8, scale_batch = 1, scale_slots = 1, slices = 2, stages = 4>        // after

Weight scales k-block by k-block where a k-block takes longer than their load, else many k-blocks at a time; a warp of
its own for all scales, unless there are few k-blocks.
A slice a wave where sums are promoted, so that the outgoing tile takes little space. Then the most stages that shared
memory holds: more loads in flight hide more latency, and nothing else needs the space.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gemmir.decisions import Decision, record
from gemmir.legality import least_stages, most_stages
from gemmir.passes.cost_model import predict
from gemmir.passes.l2_model import cluster_tiles, resident_clusters
from gemmir.passes.scale_slots import scale_slots_of, with_scales_at_once
from gemmir.passes.schedule_pass import need_tile, read_schedule, write_schedule
from gemmir.problem import GemmProblem
from gemmir.schedule import Schedule
from gemmir.target import SM_90A
from gemmir.tile import default_store_slices, exchange, fitting_stages, shared_layout, tile_geometry, widest_scale_batch

SCALE_LOAD_CLOCKS = 800
"""
Clocks of a global load that the producer waits for once a k-block (measured: with shorter k-blocks batches are faster,
512 x 4096 x 7168 by 17%, 64 x 4096 x 7168 by 40%; with longer ones slower by 1 to 2%).
"""


def useful_stages(problem: GemmProblem, schedule: Schedule) -> int:
    """
    Stages beyond which a CTA never has anything to load: its k-blocks over all its tiles, and one.

    Unbounded where M is known only at run time.
    """
    if problem.m is None:
        return most_stages(schedule)
    rows, columns = cluster_tiles(problem, schedule)
    parts = problem.numerics.split_k
    rounds = -(-rows * columns // resident_clusters(schedule, split_k=parts))
    exchanged = exchange(schedule).parts if parts > 1 else 0
    return max(least_stages(problem, schedule), (problem.part_k_blocks + exchanged) * rounds + 1)


@dataclass(frozen=True)
class GemmPlanPipelinePass(ModulePass):
    """
    Choose the batches of weight scales, the slices of the outgoing tile, and the number of stages by the byte budget.

    `ScheduleError`: GMR-S005 if the blocks are still open, GMR-S001 with the arithmetic if two stages do not fit.
    """

    name = "gemm-plan-pipeline"

    scale_batch: int | None = None
    scale_slots: int | None = None
    slices: int | None = None
    stages: int | None = None

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        matmul, problem, schedule = read_schedule(op)
        wanted = schedule.filled(
            scale_batch=self.scale_batch,
            scale_slots=self.scale_slots,
            store_slices=self.slices,
            num_stages=self.stages,
        )
        if None not in (wanted.scale_batch, wanted.scale_slots, wanted.store_slices, wanted.num_stages):
            write_schedule(matmul, problem, wanted)
            return
        need_tile(self.name, wanted, rule="the byte budget needs the tile and who computes it")
        wanted = self._slices(problem, self._scales(problem, self._scales_at_once(problem, wanted)))
        wanted = self._stages(problem, wanted)
        write_schedule(matmul, problem, self._scale_slots(problem, wanted))

    def _stages(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.num_stages is not None:
            return wanted
        fitting, useful = fitting_stages(problem, wanted), useful_stages(problem, wanted)
        chosen = max(least_stages(problem, wanted), min(fitting, useful, most_stages(wanted)))
        record(_explain(self.name, problem, wanted, chosen))
        return wanted.filled(num_stages=chosen)

    def _scales(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.scale_batch is not None:
            return wanted
        widest, clocks = widest_scale_batch(problem, wanted), predict(problem, wanted).k_block
        chosen = widest if clocks < SCALE_LOAD_CLOCKS else 1
        if widest > 1:
            less = "less" if chosen > 1 else "not less"
            because = (
                f"a k-block takes {clocks:.0f} cycles, {less} than the {SCALE_LOAD_CLOCKS} of a load of its scales"
            )
            record(Decision(self.name, "scale_batch", str(chosen), because, str(1 if chosen > 1 else widest)))
        return wanted.filled(scale_batch=chosen)

    def _scales_at_once(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        """Before the stages, which have the shared memory that is left."""
        chosen = with_scales_at_once(problem, wanted)
        if chosen is not wanted:
            because = f"short k-blocks; those of all {problem.k_blocks} are there when the first is multiplied"
            record(Decision(self.name, "scale_slots", "tile", because, "1"))
        return chosen

    def _scale_slots(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.scale_slots is not None:
            return wanted
        assert wanted.num_stages is not None
        chosen, because = scale_slots_of(problem, wanted, wanted.num_stages)
        if not because:
            return wanted.filled(scale_slots=0)
        record(Decision(self.name, "scale_slots", str(chosen), because, "0" if chosen else "1"))
        return wanted.filled(scale_slots=chosen)

    def _slices(self, problem: GemmProblem, wanted: Schedule) -> Schedule:
        if wanted.store_slices is not None:
            return wanted
        waves = tile_geometry(wanted).waves
        chosen = default_store_slices(problem, wanted)
        if chosen > 1:
            whole = fitting_stages(problem, wanted.filled(store_slices=1))
            sliced = fitting_stages(problem, wanted.filled(store_slices=chosen))
            parts = "some columns" if tile_geometry(wanted).sliced_by_columns else f"each of {waves} waves"
            while_ = "while the next one is computed" if problem.promoted else "in the shared memory of one"
            because = f"{parts} leaves {while_}; {sliced} stages fit"
            record(Decision(self.name, "slices", str(chosen), because, f"1, with which {whole} stages fit"))
        return wanted.filled(store_slices=chosen)


def _explain(name: str, problem: GemmProblem, schedule: Schedule, chosen: int) -> Decision:
    layout = shared_layout(problem, schedule, chosen)
    fitting, useful = fitting_stages(problem, schedule), useful_stages(problem, schedule)
    because = (
        f"{chosen} x {layout.stage_bytes} (A {layout.a_bytes}, B {layout.b_bytes}, scales "
        f"{layout.scale_a_bytes + layout.scale_b_bytes}, barriers) + {layout.fixed_bytes} (outgoing tile, barriers) = "
        f"{layout.total_bytes} of {SM_90A.shared_bytes} bytes; "
    )
    if chosen == fitting:
        over = layout.total_bytes + layout.stage_bytes
        return Decision(name, "stages", str(chosen), because + f"one more would need {over}")
    most = most_stages(schedule)
    limit = f"{most} are the most" if chosen == most else f"a CTA loads {useful - 1} stages in all"
    return Decision(name, "stages", str(chosen), because + f"{fitting} would fit, but {limit}")
