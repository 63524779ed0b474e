"""
The constants of the cost model, each with its unit and where it comes from.

`python -m tests.calibration.fit` fits those called "fitted" to measurements of gemmir's own kernels, which
`tests/calibration` holds. "Measured" ones come from docs/performance.md. The rest are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constants:
    """What the model needs to know beside the data in `gemmir.target`. Clocks are of the SM."""

    wave_latency: float = 206.7
    """Clocks of a wave that are neither multiplication nor promotion: completion, barrier, scales, issue (fitted)."""

    scale_step: float = 24.0
    """Clocks that each weight scale of a k-block adds to a chain: 128x192 has 3 of them, 128x176 has 11 (estimate)."""

    promotion_per_column: float = 0.5
    """Issue slots of one promoted wave per column: an FFMA per accumulator, four warps on four schedulers (counted)."""

    convoy: float = 1.16
    """
    Two promoting warpgroups of one wave fall into step unless they take turns. The fit finds 1.19; with 1.16 the search
    takes chunks for 512 x 4096 x 7168, which are 5% faster there (measured).
    """

    chunk_bubble: float = 122.8
    """Clocks per tile in which a warpgroup that takes k-blocks in chunks has nothing in flight (fitted)."""

    three_warpgroups: float = 1.229
    """Three promoting warpgroups of one wave (estimate): by hand, 192x128 takes 5% longer than 128x192."""

    operand_order: float = 9.546
    """
    Tensor cores and their reads from shared memory overlap as a norm of this order where sums are accumulated in place:
    256x128 reads more than 128x256 (fitted).
    """

    in_place_wave: float = 0.04434
    """Share by which each wave beyond a warpgroup's first lengthens a k-block that is accumulated in place (fitted)."""

    in_place_three: float = 1.004
    """Three warpgroups that accumulate in place: by how much their k-blocks are longer (fitted)."""

    in_place_loads: float = 0.92
    """
    L2 delivers at a rate in time: in clocks of the lower SM clock under 16-bit operands, loads take this share of those
    under FP8 (fitted).
    """

    in_place_shallow: float = 0.00685
    """Share by which k-blocks that are accumulated in place are longer with three stages than with more (fitted)."""

    in_place_bubble: float = 318.8
    """Clocks per tile in which a warpgroup that accumulates in place has nothing in flight (fitted)."""

    cluster_coupling: float = 1.012
    """
    A slot is free only when both CTAs of a cluster have read it: k-blocks take that much longer (measured). What
    multicast spares L2 gains nothing that was measured.
    """

    spread_a: float = 0.09776
    """How much longer loads take if they were of A only and neighbouring CTAs shared nothing (fitted)."""

    spread_b: float = 0.4896
    """The same for B (fitted)."""

    load_latency: float = 1000.0
    """Clocks from a free stage to the first bytes of its refill: L2, TMA and both barriers (estimate)."""

    l2_efficiency: float = 2.132
    """Rate at which an SM loads from L2 if its neighbours load the same, over that of the target (fitted)."""

    overlap_order: float = 4.562
    """Loads and multiplication of a k-block overlap as a norm of this order: 2% over the maximum at a tie (fitted)."""

    hinted_loads: float = 0.8257
    """Loads that L2 is told to let go of first take this share of the time: tiles in one wave or two (fitted)."""

    fill_clocks: float = 0.6673
    """Clocks that a row past the last one, which TMA fills with zeros, adds to each k-block of its tile (fitted)."""

    in_place_fill_clocks: float = 2.721
    """The same where sums are accumulated in place (fitted)."""

    scales_by_producer: float = 294.9
    """Clocks that scales add to the loads of a k-block if the producer warp fills them in, behind a fence (fitted)."""

    scales_by_warp: float = 249.7
    """The same if they have a warp of their own (fitted)."""

    scales_at_once: float = 63.93
    """Of those, what many slots at a time have one of: a fence (fitted)."""

    scales_of_tile: float = 134.3
    """Clocks that scales add to the loads of a k-block if those of a whole tile are loaded at once (fitted)."""

    dram_overlap_order: float = 2.686
    """The same between the whole kernel's cycles and its DRAM traffic (fitted)."""

    dram_efficiency: float = 1.04
    """Share of the copy bandwidth that a GEMM's reads and writes reach: left free, it leaves what DRAM can do."""

    l2_reuse_bytes: float = 39730000.0
    """Of the bytes that are read again after as many others went through L2, half are still there (fitted)."""

    l2_reuse_order: float = 2.804
    """How sharply that share falls: 1 / (1 + (distance / l2_reuse_bytes) ** order) (fitted)."""

    l2_dirty_bytes: float = 1426000.0
    """Results that are still in L2, not in DRAM, when the kernel ends (fitted)."""

    store_exposed: float = 0.36
    """
    Share of a tile's store that nothing hides, if the tile leaves at once. The fit finds 0.31; with 0.36 the search
    takes 128x256 for FP8 4096 x 32768 x 512, which is 4% faster there than 128x192 (measured).
    """

    store_row_clocks: float = 5.549
    """Clocks that each row of a tile adds to its store: tall tiles leave in more, shorter pieces (fitted)."""

    sliced_store_exposed: float = 0.3974
    """The same if it leaves in slices, each while the next one is computed (fitted)."""

    in_place_store_exposed: float = 0.2709
    """The same of sums in place that leave at once (fitted)."""

    in_place_slice_exposed: float = 0.1302
    """Share of a tile's store that each slice of sums in place adds to it: it waits for the one before (fitted)."""

    cold_seconds_per_byte: float = 2.216e-14
    """First reads of A and B that nothing hides: page walks, and DRAM before the pipeline has run ahead (fitted)."""

    launch_seconds: float = 3.47e-06
    """Launch, barriers, tensor maps, the first bytes from DRAM and the last store (fitted)."""

    exchange_bytes_per_clock: float = 14.0
    """Rate at which each of two CTAs sends sums to the other: 3.27 TB/s over all SMs (by published measurements)."""

    exchange_clocks: float = 1500.0
    """Clocks of an exchange beside that: the other CTA may be behind, and nothing is in flight (estimate)."""

    cluster_seconds: float = 0.2e-6
    """Meeting of a cluster before the first load and before exit (estimate)."""

    boost_clock_hz: float = 1.98e9
    """SM clock with idle tensor cores and DRAM: the highest of the part."""

    power_drop_hz: float = 3.18e8
    """How much lower the SM clock settles with tensor cores that are always busy (by measured clocks)."""

    l2_drop_hz: float = 116100000.0
    """What tiles that load twice as much for a clock of the tensor cores add to `sustained_drop_hz` (fitted)."""

    dram_drop_hz: float = 27040000.0
    """The same for a DRAM that is always busy (fitted)."""

    sustained_drop_hz: float = 17140000.0
    """How much lower it settles in a kernel that runs e times as long, beyond `sustained_seconds` (fitted)."""

    sustained_seconds: float = 50e-6
    """Kernels much shorter than this end before the power limit acts (estimate)."""


DEFAULT = Constants()
