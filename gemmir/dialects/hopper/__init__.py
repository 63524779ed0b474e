"""
The hopper dialect: how one kernel computes a GEMM on sm_90a.

One op per thing that the hardware does, plus the loops and roles that hold them. Shared memory, barriers, cursors,
fragments and scales are storage: TMA and WGMMA are asynchronous, and value semantics would lie about when data exist.

A kernel is launched so that every cluster has at least one tile; one with groups, whose tiles only the device can
count, drops the CTAs that have none. Loads fill a ring of slots; a `cursor` is a position
in it: stage number and phase parity. `full` barriers say that a slot holds data, `empty` ones that it may be
overwritten.
"""

from __future__ import annotations

from xdsl.ir import Dialect

from gemmir.dialects.hopper.arithmetic import (
    LoadScalesOp,
    MoveScalesOp,
    PromoteColumnsOp,
    PromoteOp,
    WgmmaCommitOp,
    WgmmaFenceOp,
    WgmmaOp,
    WgmmaWaitOp,
    ZeroOp,
)
from gemmir.dialects.hopper.barriers import (
    AcquireOp,
    ArriveOp,
    ClusterSyncOp,
    CtaSyncOp,
    ExpectOp,
    FenceProxyAsyncOp,
    InitBarriersOp,
    PassTurnOp,
    ReleaseOp,
    SyncWarpOp,
    TakeTurnOp,
    WaitOp,
)
from gemmir.dialects.hopper.control import (
    CountTilesOp,
    KBlocksOp,
    KernelOp,
    RolesOp,
    SetMaxRegistersOp,
    TilesOp,
    WarpgroupsOp,
    WarpOp,
)
from gemmir.dialects.hopper.loads import (
    FetchScalesOp,
    GroupBlockOp,
    GroupPointerOp,
    NextScalesOp,
    PrefetchMapsOp,
    PutScalesOp,
    StartScalesOp,
    TmaLoadOp,
)
from gemmir.dialects.hopper.split_k import AddSumsOp, GrantOp, PartBlockOp, SendSumsOp
from gemmir.dialects.hopper.storage import (
    AdvanceOp,
    BarriersOp,
    CursorOp,
    FragmentOp,
    NextOp,
    RingOp,
    ScalesOp,
    StagingOp,
)
from gemmir.dialects.hopper.stores import (
    StageFragmentOp,
    StoreCommitOp,
    StoreRowsOp,
    StoreWaitReadOp,
    TmaFillOp,
    TmaStoreOp,
)
from gemmir.dialects.hopper.types import (
    AxisAttr,
    BarriersType,
    BindAttr,
    CursorType,
    FragmentType,
    GroupingAttr,
    PairAttr,
    PointerType,
    RasterAttr,
    RingType,
    ScaleBatchType,
    ScalesType,
    StagingType,
    TensorAttr,
    TensorMapType,
)

Hopper = Dialect(
    "hopper",
    [
        AcquireOp,
        AddSumsOp,
        AdvanceOp,
        ArriveOp,
        BarriersOp,
        ClusterSyncOp,
        CountTilesOp,
        CtaSyncOp,
        CursorOp,
        ExpectOp,
        FenceProxyAsyncOp,
        FetchScalesOp,
        FragmentOp,
        GrantOp,
        GroupBlockOp,
        GroupPointerOp,
        InitBarriersOp,
        KBlocksOp,
        KernelOp,
        LoadScalesOp,
        MoveScalesOp,
        NextOp,
        NextScalesOp,
        PartBlockOp,
        PassTurnOp,
        PrefetchMapsOp,
        PromoteColumnsOp,
        PromoteOp,
        PutScalesOp,
        ReleaseOp,
        RingOp,
        RolesOp,
        ScalesOp,
        SendSumsOp,
        SetMaxRegistersOp,
        StageFragmentOp,
        StagingOp,
        StartScalesOp,
        StoreCommitOp,
        StoreRowsOp,
        StoreWaitReadOp,
        SyncWarpOp,
        TakeTurnOp,
        TilesOp,
        TmaFillOp,
        TmaLoadOp,
        TmaStoreOp,
        WaitOp,
        WarpOp,
        WarpgroupsOp,
        WgmmaCommitOp,
        WgmmaFenceOp,
        WgmmaOp,
        WgmmaWaitOp,
        ZeroOp,
    ],
    [
        AxisAttr,
        BarriersType,
        BindAttr,
        CursorType,
        FragmentType,
        GroupingAttr,
        PairAttr,
        PointerType,
        RasterAttr,
        RingType,
        ScaleBatchType,
        ScalesType,
        StagingType,
        TensorAttr,
        TensorMapType,
    ],
)
