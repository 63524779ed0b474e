"""All planted faults, and the table of who finds them."""

from __future__ import annotations

from tests.sabotage.at_once import AT_ONCE
from tests.sabotage.fault import Fault
from tests.sabotage.forms import FORMS
from tests.sabotage.frame import FRAME
from tests.sabotage.gather import GATHER
from tests.sabotage.group_clusters import CLUSTERS
from tests.sabotage.groups import GROUPS
from tests.sabotage.math_chunked import CHUNKED
from tests.sabotage.math_role import MATH
from tests.sabotage.producer import PRODUCER
from tests.sabotage.scales import SCALES
from tests.sabotage.slices import SLICES
from tests.sabotage.slot_scales import SLOT_SCALES
from tests.sabotage.split_k import SPLIT_K
from tests.sabotage.stream import STREAM
from tests.sabotage.tail import TAIL

FAULTS: tuple[Fault, ...] = (
    *(*PRODUCER.faults, *MATH.faults, *CHUNKED.faults, *FRAME.faults, *SLICES.faults, *SPLIT_K.faults, *GROUPS.faults),
    *(*CLUSTERS.faults, *FORMS.faults, *STREAM.faults, *SCALES.faults, *GATHER.faults, *TAIL.faults),
    *(*SLOT_SCALES.faults, *AT_ONCE.faults),
)

FOR_THE_SIMULATOR: tuple[Fault, ...] = tuple(fault for fault in FAULTS if fault.caught_by == "simulator")
"""What a run of the kernel on exact data must find: the checker has nothing to say of it."""


def table() -> str:
    """The faults as a markdown table, one row for each way of breaking a kernel."""
    rows = ["| fault | kernels | found by |", "|---|---|---|"]
    grouped: dict[str, list[Fault]] = {}
    for fault in FAULTS:
        grouped.setdefault(fault.what, []).append(fault)
    for what, faults in grouped.items():
        kernels = ", ".join(fault.kernel for fault in faults)
        catchers = dict.fromkeys(f"{f.caught_by} ({f.rule})" if f.rule else f.caught_by for f in faults)
        rows.append(f"| {what} | {kernels} | {', '.join(catchers)} |")
    return "\n".join(rows)
