"""The audit: printed CUDA says what the IR says, and a source that does not is refused."""

from __future__ import annotations

import time

import pytest

from gemmir.backends.cuda import sass
from gemmir.backends.cuda.audit import audit_sass, audit_source
from gemmir.backends.cuda.audit_source import calls_of, instructions
from gemmir.backends.cuda.nvrtc import compile_cubin
from gemmir.backends.cuda.prelude import prelude, sections
from gemmir.backends.cuda.printer import print_kernel
from gemmir.errors import SyncError, ToolMissingError
from tests.backends.cuda.disassembly import InBatches
from tests.sabotage.kernels import TEXTS, kernel_in, module_of

SECONDS = 0.02


def has_nvdisasm() -> bool:
    try:
        sass.find_tool("nvdisasm")
    except ToolMissingError:
        return False
    return True


def source_of(name: str) -> str:
    return print_kernel(kernel_in(module_of(name))).source


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_printed_is_what_was_proven(name: str):
    kernel, source = kernel_in(module_of(name)), source_of(name)
    audit_source(kernel, source)
    assert len(calls_of(source)) >= 39


def test_it_takes_no_time():
    kernel, source = kernel_in(module_of("fp8-2x1")), source_of("fp8-2x1")
    taken: list[float] = []
    for _ in range(5):
        start = time.process_time()
        audit_source(kernel, source)
        taken.append(time.process_time() - start)
    assert min(taken) < SECONDS


CHANGES = {
    "a fence less": ("                fence_proxy_async();\n", ""),
    "a fence less in its wrapper": ("fence.proxy.async.shared::cta;", ""),
    "a weaker fence": ("fence.proxy.async.shared::cta;", "fence.proxy.async.global;"),
    "the wrong parity": ("at.parity ^ 1", "at.parity"),
    "the wrong parity of the first wait": (
        "mbarrier_wait(full + at.stage * 8, at.parity);",
        "mbarrier_wait(full + at.stage * 8, at.parity ^ 1);",
    ),
    "the slot in hand instead of the next": (
        "mbarrier_wait(full + ahead.stage * 8, ahead.parity)",
        "mbarrier_wait(full + at.stage * 8, at.parity)",
    ),
    "the wrong bytes": ("33280", "32768"),
    "the wrong arrivals": ("mbarrier_init(empty + i * 8, 16)", "mbarrier_init(empty + i * 8, 8)"),
    "a barrier not initialised": (
        "for (int i = 0; i < 3; ++i) mbarrier_init(empty",
        "for (int i = 0; i < 2; ++i) mbarrier_init(empty",
    ),
    "another barrier": ("mbarrier_expect(full", "mbarrier_expect(empty"),
    "arrays of barriers moved": ("const u32 full = smem + 132656;", "const u32 full = smem + 132664;"),
    "a peer less": ("if (lane < 2) mbarrier_arrive_peer", "if (lane < 1) mbarrier_arrive_peer"),
    "no multicast": (".multicast::cluster", ""),
    "multicast to oneself": ("* 8, 3);", "* 8, 1);"),
    "WGMMAs in flight": ("wgmma_wait<0>();", "wgmma_wait<1>();"),
    "a WGMMA less a slot": ("i < 4; ++i)\n        wgmma", "i < 3; ++i)\n        wgmma"),
    "a sum that is not fresh": ("multiply<true>", "multiply<false>"),
    "a k-block less": ("k < 7; ++k", "k < 6; ++k"),
    "a wait in the last block": ("if (k + 1 < 7 || !tiles.last()) ", ""),
    "no condition on the arrival": ("if (lane == 0) mbarrier_arrive(staged", "mbarrier_arrive(staged"),
    "registers": ("setmaxnreg_inc<232>", "setmaxnreg_inc<240>"),
    "another warp": ("if (warp == 9 && lane == 0)", "if (warp == 10 && lane == 0)"),
    "a store not awaited": (
        "tma_store_wait_read<0>();\n                mbarrier_arrive(drained);",
        "mbarrier_arrive(drained);",
    ),
    "a store too late": (
        "tma_store_commit();\n                tma_store_wait_read<0>();",
        "tma_store_wait_read<0>();\n                tma_store_commit();",
    ),
    "no meeting at the end": ("    }\n    cluster_sync_release();\n}", "    }\n}"),
    "no release at the end": ("    }\n    cluster_sync_release();\n}", "    }\n    cluster_sync();\n}"),
    "something more at the end": (
        "    }\n    cluster_sync_release();\n}",
        "    }\n    cluster_sync_release();\n    cluster_sync();\n}",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_was_changed(change: str):
    kernel, source = kernel_in(module_of("fp8-2x1")), source_of("fp8-2x1")
    old, new = CHANGES[change]
    assert old in source
    with pytest.raises(SyncError, match="GMR-Y001: @k: the IR asks for"):
        audit_source(kernel, source.replace(old, new, 1))


CHANGES_OF_SLICES = {
    "a k-block more in the loop": ("k < 6; ++k", "k < 7; ++k"),
    "a wait in the last block": ("if (!tiles.last()) mbarrier_wait", "mbarrier_wait"),
    "the condition of a loop that has the last block": (
        "                mbarrier_wait(full + ahead.stage * 8, ahead.parity);",
        "                if (k + 1 < 6 || !tiles.last()) mbarrier_wait(full + ahead.stage * 8, ahead.parity);",
    ),
    "the condition in the loop": (
        "                mbarrier_wait(full + ahead.stage * 8, ahead.parity);",
        "                if (!tiles.last()) mbarrier_wait(full + ahead.stage * 8, ahead.parity);",
    ),
    "a slice that is not acquired": ("            mbarrier_wait(drained + group * 8, out.parity ^ 1);\n", ""),
    "a slice that is not reported": ("            if (lane == 0) mbarrier_arrive(staged + group * 8);\n", ""),
    "a slice that is not given back": ("                mbarrier_arrive(drained + 8);\n", ""),
}


@pytest.mark.parametrize("change", CHANGES_OF_SLICES)
def test_a_source_whose_slices_were_changed(change: str):
    kernel, source = kernel_in(module_of("fp8")), source_of("fp8")
    old, new = CHANGES_OF_SLICES[change]
    assert old in source
    with pytest.raises(SyncError, match="GMR-Y001: @k: the IR asks for"):
        audit_source(kernel, source.replace(old, new, 1))


CHANGES_OF_SPLIT_K = {
    "a grant that orders nothing": ("mbarrier.arrive.release.cluster.shared", "mbarrier.arrive.shared"),
    "a grant for the other slots": ("mbarrier_grant(room", "mbarrier_grant(full"),
    "a grant by every lane": (
        "if (lane == 0) {\n                    mbarrier_expect(full + at.",
        "if (true) {\n  mbarrier_expect(full + at.",
    ),
    "a wait that sees nothing of the peer": ("mbarrier_wait_peer(room", "mbarrier_wait(room"),
    "a wait of the wrong scope": (".parity.acquire.cluster.", ".parity.acquire.cta."),
    "the sums of the first slot in the second": ("send_sums<32, 32>", "send_sums<0, 32>"),
    "the first slot twice": ("ring_b + ahead_1.stage", "ring_b + at.stage"),
    "bytes that nothing counts": ("full + ahead_1.stage * 8, rank ^ 1", "empty + ahead_1.stage * 8, rank ^ 1"),
    "ordinary stores": ("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4", "st.shared::cluster.v4"),
    "no sums at all": ("send_sums<0, 32>(total0", "// send_sums<0, 32>(total0"),
    "the waves in the same order": ("+ rank * 8192", "+ (rank ^ 1) * 8192"),
    "the waves in the same order as of an unsplit tile": ("+ rank * 8192", "+ 0 * 8192"),
    "fewer bytes": ("mbarrier_expect(full + at.stage * 8, 32768)", "mbarrier_expect(full + at.stage * 8, 16384)"),
}


@pytest.mark.parametrize("change", CHANGES_OF_SPLIT_K)
def test_a_source_whose_exchange_was_changed(change: str):
    kernel, source = kernel_in(module_of("fp8-split")), source_of("fp8-split")
    old, new = CHANGES_OF_SPLIT_K[change]
    assert old in source
    with pytest.raises(SyncError, match="GMR-Y001: @k: the IR asks for"):
        audit_source(kernel, source.replace(old, new, 1))


CHANGES_OF_CLUSTERS = {
    "tiles dealt out to CTAs": (", false, 2, 1> all_tiles(groups);", ", false> all_tiles(groups);"),
    "tiles dealt out to another cluster": (", false, 2, 1> all_tiles(groups);", ", false, 1, 2> all_tiles(groups);"),
    "no end without a tile": ("    if (all_tiles.none()) return;\n", ""),
    "B for this CTA alone": (
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast",
        "x",
    ),
    "B for nobody but the first": (", full + at.stage * 8, 3);", ", full + at.stage * 8, 1);"),
    "the same part of B twice": ("ring_b + at.stage * 16384 + rank * 8192", "ring_b + at.stage * 16384"),
    "no last meeting": ("    cluster_sync_release();\n", ""),
    "a slot that the peer is not given": ("if (lane < 2) mbarrier_arrive_peer", "if (lane < 1) mbarrier_arrive_peer"),
}


@pytest.mark.parametrize("change", CHANGES_OF_CLUSTERS)
def test_a_source_whose_cluster_of_groups_was_changed(change: str):
    kernel, source = kernel_in(module_of("fp8-offs-2x1")), source_of("fp8-offs-2x1")
    old, new = CHANGES_OF_CLUSTERS[change]
    assert old in source
    with pytest.raises(SyncError, match="GMR-Y001: @k: the IR asks for"):
        audit_source(kernel, source.replace(old, new, 1))


def test_turns_are_compared():
    kernel, source = kernel_in(module_of("fp8-turns")), source_of("fp8-turns")
    for old, new in (
        ("if (group == 1) named", "if (group == 0) named"),
        (", 256);", ", 128);"),
        ("bar.arrive", "bar.sync"),
    ):
        assert old in source
        with pytest.raises(SyncError):
            audit_source(kernel, source.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k < 6; k += 2", "k < 6; ++k"),
        ("k < 6; k += 2", "k < 6; k += 3"),
        ("k < 6; k += 2", "k < 8; k += 2"),
        ("wgmma_wait<1>();", "wgmma_wait<0>();"),
        ("ahead.stage * 8, ahead.parity", "at.stage * 8, at.parity"),
        ("ring_a + ahead.stage", "ring_a + at.stage"),
        ("                at.advance();\n            }", "            }\n            fence_proxy_async();"),
    ],
)
def test_chunks_are_compared(old: str, new: str):
    kernel, source = kernel_in(module_of("fp8-chunk")), source_of("fp8-chunk")
    assert old in source
    with pytest.raises(SyncError):
        audit_source(kernel, source.replace(old, new, 1))


def test_the_wrappers_are_read_to_the_ground():
    found = instructions(prelude(sections()))
    assert found["stage_columns"] == ("stmatrix.sync.aligned.m8n8.x4.shared.b16",)
    assert found["cluster_sync"] == ("barrier.cluster.arrive.relaxed", "barrier.cluster.wait.acquire")
    assert found["mbarrier_arrive_peer"] == ("mbarrier.arrive.shared::cluster.b64",)
    assert found["zero"] == ()
    assert found["promote"] == ()


COMPILED = (
    *("fp8", "fp8-whole", "fp8-waves-2x1", "fp8-turns", "fp8-2x1", "fp8-chunk"),
    *("bf16-2x1", "fp8-split", "bf16-split"),
)
SASS = InBatches(lambda name: compile_cubin(source_of(name)).cubin, COMPILED)


@pytest.mark.skipif(not has_nvdisasm(), reason="nvdisasm is not installed")
@pytest.mark.parametrize("name", COMPILED)
def test_machine_code(name: str):
    kernel, text = kernel_in(module_of(name)), SASS[name]
    audit_sass(kernel, text)
    sends = ("STAS",) if name.endswith("split") else ()
    for opcode in ("UTMALDG", "UTMASTG", "USETMAXREG", "QGMMA" if name.startswith("fp8") else "HGMMA", *sends):
        with pytest.raises(SyncError, match="the machine code has"):
            audit_sass(kernel, text.replace(opcode, "NOP", 1))


def test_machine_code_without_barriers():
    with pytest.raises(SyncError, match="the IR asks for 3 UTMALDG, the machine code has 0"):
        audit_sass(kernel_in(module_of("fp8")), "")
