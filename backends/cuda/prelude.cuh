// Thin wrappers around sm_90a PTX. No header is included. Sections start with `//@ name: what it needs`; the printer
// emits only those that a kernel uses.

//@ types:
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
#define DEVICE __device__ __forceinline__

//@ TensorMap: types
struct alignas(64) TensorMap { u8 opaque[128]; };

//@ smem_address: types
DEVICE u32 smem_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

//@ warp_uniform: types
// Broadcast from lane 0, so that the compiler knows the value to be uniform and keeps it in uniform registers.
DEVICE u32 warp_uniform(u32 x) { return __shfl_sync(0xffffffffu, x, 0); }

//@ cluster_rank: types
DEVICE u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }

//@ cluster_sync_release: types
DEVICE void cluster_sync_release() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

//@ cluster_sync: types
// Relaxed: the release form costs a GPU-wide fence, and nothing in memory has to be seen by the peers.
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

//@ peer_address: types
// The same shared-memory location in CTA `rank` of the cluster.
DEVICE u32 peer_address(u32 address, u32 rank) {
    u32 r;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
}

//@ setmaxnreg_dec: types
template <int REGISTERS> DEVICE void setmaxnreg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

//@ setmaxnreg_inc: types
template <int REGISTERS> DEVICE void setmaxnreg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)); }

//@ named_barrier_sync: types
DEVICE void named_barrier_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

//@ named_barrier_arrive: types
DEVICE void named_barrier_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

//@ mbarrier_init: types
DEVICE void mbarrier_init(u32 bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals)); }

//@ fence_mbarrier_init: types
DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

//@ mbarrier_expect: types
DEVICE void mbarrier_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

//@ mbarrier_arrive: types
DEVICE void mbarrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }

//@ mbarrier_arrive_peer: types peer_address
// No `.release.cluster`: it costs a GPU-wide fence, and a consumer that only read has nothing to publish.
DEVICE void mbarrier_arrive_peer(u32 bar, u32 rank) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer_address(bar, rank)) : "memory");
}

//@ mbarrier_wait: types
DEVICE void mbarrier_wait(u32 bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(bar), "r"(parity) : "memory");
}

//@ Cursor: types
// A position in a ring of slots, and the parity of the phase that its barriers are in.
template <int STAGES> struct Cursor {
    int stage = 0;
    u32 parity = 0;
    DEVICE void advance() { if (++stage == STAGES) { stage = 0; parity ^= 1; } }
    DEVICE Cursor next() const { Cursor c = *this; c.advance(); return c; }
};

//@ prefetch_tensormap: TensorMap
DEVICE void prefetch_tensormap(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

//@ tma_load: TensorMap
DEVICE void tma_load(u32 dst, const TensorMap& map, int column, int row, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
        "r"(dst), "l"(&map), "r"(column), "r"(row), "r"(bar) : "memory");
}

//@ tma_load_multicast: TensorMap
// The box lands at the same offset in every CTA of `ctas`, and each one's own barrier counts it.
DEVICE void tma_load_multicast(u32 dst, const TensorMap& map, int column, int row, u32 bar, u16 ctas) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst), "l"(&map), "r"(column), "r"(row), "r"(bar), "h"(ctas) : "memory");
}

//@ tma_store_if: TensorMap
// Predicated, not branched around: a divergent branch makes ptxas drain the WGMMAs in flight.
DEVICE void tma_store_if(bool inside, const TensorMap& map, int column, int row, u32 src) {
    asm volatile(
        "{\n.reg .pred inside;\nsetp.ne.b32 inside, %4, 0;\n"
        "@inside cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];\n}" ::
        "l"(&map), "r"(column), "r"(row), "r"(src), "r"(int(inside)) : "memory");
}

//@ tma_store_commit: types
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

//@ tma_store_wait_read: types
template <int PENDING> DEVICE void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }

//@ fence_proxy_async: types
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

//@ wgmma_descriptor: types
// K-major operand in rows of 128 bytes with the 128-byte swizzle: address / 16, 8 rows every 1024 bytes, swizzle mode 1.
DEVICE u64 wgmma_descriptor(u32 address) { return 0x4000004000000000ull | u64((address & 0x3FFFF) >> 4); }

//@ wgmma_panel_descriptor: types
// An operand that is not K-major, in panels of 64 elements of M or N: one k in a row of 128 bytes with the 128-byte
// swizzle, 8 of them every 1024 bytes, panels every 8192 bytes.
DEVICE u64 wgmma_panel_descriptor(u32 address) { return 0x4000004002000000ull | u64((address & 0x3FFFF) >> 4); }

//@ wgmma_fence: types
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

//@ wgmma_commit: types
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

//@ wgmma_wait: types
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

//@ settled: types
// Names what finished WGMMAs wrote, so that the compiler moves no read of it above the wait before.
template <int COUNT> DEVICE void settled(float (&fragment)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(fragment[i])::"memory");
}

//@ zero: types
template <int COUNT> DEVICE void zero(float (&fragment)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) fragment[i] = 0.f;
}

//@ load_shared_f32: types
DEVICE float load_shared_f32(u32 address) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
    return v;
}

//@ store_shared_f32: types
DEVICE void store_shared_f32(u32 address, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory"); }

//@ ScaleBatch: types
// A tile's weight scales on their way to the producer warp: lane l holds that of k-block l / LANES of a batch, and of column
// step l % LANES. The load of the next batch starts with the first k-block of this one, so that none is waited for.
template <int BATCH, int LANES> struct ScaleBatch {
    const float* column;
    i64 stride;
    int blocks;
    float now = 0.f, following;
    DEVICE ScaleBatch(bool inside, const float* column, i64 stride, int blocks)
        : column(column), stride(stride), blocks(inside ? blocks : 0), following(load(0)) {}
    DEVICE float load(int first) const {
        const int k = first + threadIdx.x % 32 / LANES;
        return k < blocks ? __ldg(column + k * stride) : 0.f;
    }
    DEVICE float at(int k) {
        if (k % BATCH == 0) {
            now = following;
            following = load(k + BATCH);
        }
        return __shfl_sync(0xffffffffu, now, k % BATCH * LANES + threadIdx.x % LANES);
    }
};

//@ Scales: load_shared_f32
// What one thread needs of a stage: the row scales of its two rows of each wave (two `swap`ped), and a column scale per step.
template <int WAVES, int STEPS> struct Scales {
    float row[WAVES][2], step[STEPS];
    DEVICE void load(u32 rows, u32 steps, u32 swap = 0) {
#pragma unroll
        for (int w = 0; w < WAVES; ++w) {
            row[w][0] = load_shared_f32(rows + (w ^ swap) * 256);
            row[w][1] = load_shared_f32(rows + (w ^ swap) * 256 + 32);
        }
#pragma unroll
        for (int j = 0; j < STEPS; ++j) step[j] = load_shared_f32(steps + j * 4);
    }
};

//@ promote: types
// Registers 4c .. 4c + 3 of a fragment are two neighbouring columns of one row and of the row 8 below, in columns
// 8c .. 8c + 7.
template <int STEP, int COUNT, int STEPS>
DEVICE void promote(float (&total)[COUNT], const float (&partial)[COUNT], const float (&row)[2], const float (&step)[STEPS]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float scale = __fmul_rn(row[i / 2 % 2], step[i / 4 * 8 / STEP]);
        total[i] = __fmaf_rn(partial[i], scale, total[i]);
    }
}

//@ load_shared_f32x2: types
DEVICE void load_shared_f32x2(u32 address, float& a, float& b) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(a), "=f"(b) : "r"(address) : "memory");
}

//@ promote_columns: load_shared_f32 load_shared_f32x2 settled
// The same with a scale for each column: `rows` is where this thread's first row scale lies, `columns` the first of all.
// The totals settle here: moved below the next WGMMA, their sums would make ptxas drain the pipe (C7514).
template <int COUNT>
DEVICE void promote_columns(float (&total)[COUNT], const float (&partial)[COUNT], u32 rows, u32 columns) {
    const float row[2] = {load_shared_f32(rows), load_shared_f32(rows + 32)};
    columns += threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < COUNT / 4; ++c) {
        float column[2];
        load_shared_f32x2(columns + c * 32, column[0], column[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            total[4 * c + i] = __fmaf_rn(partial[4 * c + i], __fmul_rn(row[i / 2], column[i % 2]), total[4 * c + i]);
    }
    settled(total);
}

//@ pack_bf16: types
DEVICE u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

//@ pack_f16: types
DEVICE u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

//@ stmatrix_x4: types
DEVICE void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

//@ stage_columns: stmatrix_x4
// Puts a warp's 16 rows of COLUMNS columns, from fragment register FIRST on, into a box whose rows are COLUMNS wide. Lane l
// addresses row l % 16 of the 8-column group l / 16; 16-byte chunks are permuted by (row >> SHIFT) & MASK.
template <int FIRST, int COLUMNS, int SHIFT, int MASK, int COUNT>
DEVICE void stage_columns(const float (&f)[COUNT], u32 box, u32 first_row) {
    const u32 lane = threadIdx.x % 32, row = first_row + lane % 16;
#pragma unroll
    for (int c = 0; c < COLUMNS / 16; ++c) {
        const u32 chunk = (2 * c + lane / 16) ^ (row >> SHIFT & MASK);
        const int i = FIRST + 8 * c;
        stmatrix_x4(box + row * COLUMNS * 2 + chunk * 16, pack(f[i], f[i + 1]), pack(f[i + 2], f[i + 3]),
                    pack(f[i + 4], f[i + 5]), pack(f[i + 6], f[i + 7]));
    }
}

//@ store_shared_f32x2: types
DEVICE void store_shared_f32x2(u32 address, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(a), "f"(b) : "memory");
}

//@ stage_columns_f32: store_shared_f32x2
// The same in f32, where each lane stores the pairs of columns that it has. In boxes of 128-byte rows, odd rows take the
// 8-column groups in another order, so that half a warp's stores fall into all banks.
template <int FIRST, int COLUMNS, int SHIFT, int MASK, int COUNT>
DEVICE void stage_columns_f32(const float (&f)[COUNT], u32 box, u32 first_row) {
    asm volatile("" : "+r"(box), "+r"(first_row));
    const u32 lane = threadIdx.x % 32, row = first_row + lane / 4;
    constexpr int TURN = COLUMNS == 32 ? 2 : 0;
    const bool odd = TURN != 0 && row % 2 != 0;
#pragma unroll
    for (int c = 0; c < COLUMNS / 8; ++c) {
        const u32 chunk = (2 * (odd ? c ^ TURN : c) + lane % 4 / 2) ^ (row >> SHIFT & MASK);
        const int i = FIRST + 4 * c, j = FIRST + 4 * (c ^ TURN);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            store_shared_f32x2(box + (row + half * 8) * COLUMNS * 4 + chunk * 16 + lane % 2 * 8,
                               odd ? f[j + half * 2] : f[i + half * 2], odd ? f[j + half * 2 + 1] : f[i + half * 2 + 1]);
    }
}

//@ unpack_bf16: types
DEVICE void unpack(u32 pair, float& low, float& high) {
    low = __uint_as_float(pair << 16);
    high = __uint_as_float(pair & 0xffff0000u);
}

//@ unpack_f16: types
DEVICE void unpack(u32 pair, float& low, float& high) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(low), "=f"(high) : "r"(pair));
}

//@ load_shared_b32: types
DEVICE u32 load_shared_b32(u32 address) {
    u32 v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

//@ add_columns: load_shared_b32
// Adds what lies where `stage_columns` puts these columns, in f32. Each lane reads the pairs of columns that it has.
template <int FIRST, int COLUMNS, int SHIFT, int MASK, int COUNT>
DEVICE void add_columns(float (&f)[COUNT], u32 box, u32 first_row) {
    asm volatile("" : "+r"(box), "+r"(first_row));
    const u32 lane = threadIdx.x % 32, row = first_row + lane / 4;
#pragma unroll
    for (int c = 0; c < COLUMNS / 8; ++c) {
        const u32 chunk = c ^ (row >> SHIFT & MASK);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int i = FIRST + 4 * c + half * 2;
            float low, high;
            unpack(load_shared_b32(box + (row + half * 8) * COLUMNS * 2 + chunk * 16 + lane % 4 * 4), low, high);
            f[i] = __fadd_rn(f[i], low);
            f[i + 1] = __fadd_rn(f[i + 1], high);
        }
    }
}

//@ add_columns_f32: load_shared_f32x2
// The same in f32, in the order of `stage_columns_f32`.
template <int FIRST, int COLUMNS, int SHIFT, int MASK, int COUNT>
DEVICE void add_columns_f32(float (&f)[COUNT], u32 box, u32 first_row) {
    asm volatile("" : "+r"(box), "+r"(first_row));
    const u32 lane = threadIdx.x % 32, row = first_row + lane / 4;
    constexpr int TURN = COLUMNS == 32 ? 2 : 0;
    const bool odd = TURN != 0 && row % 2 != 0;
#pragma unroll
    for (int c = 0; c < COLUMNS / 8; ++c) {
        if (TURN != 0 && (c & TURN)) continue;
        const u32 mask = row >> SHIFT & MASK;
        const u32 one = (2 * (odd ? c ^ TURN : c) + lane % 4 / 2) ^ mask, other = (2 * (odd ? c : c ^ TURN) + lane % 4 / 2) ^ mask;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 start = box + (row + half * 8) * COLUMNS * 4 + lane % 2 * 8;
            const int i = FIRST + 4 * c + half * 2, j = FIRST + 4 * (c ^ TURN) + half * 2;
            float a, b, x = 0.f, y = 0.f;
            load_shared_f32x2(start + one * 16, a, b);
            if (TURN != 0) load_shared_f32x2(start + other * 16, x, y);
            f[i] = __fadd_rn(f[i], odd ? x : a);
            f[i + 1] = __fadd_rn(f[i + 1], odd ? y : b);
            if (TURN != 0) {
                f[j] = __fadd_rn(f[j], odd ? a : x);
                f[j + 1] = __fadd_rn(f[j + 1], odd ? b : y);
            }
        }
    }
}

//@ tile_place: types
// Where tile `index` of rows x columns tiles is: tiles are visited in groups of GROUP rows (or columns), the group's short
// side first, so that tiles in flight share operands in L2.
template <int GROUP, bool ALONG_M> DEVICE void tile_place(u32 index, u32 rows, u32 columns, int& row, int& column) {
    const u32 grouped = ALONG_M ? rows : columns, other = ALONG_M ? columns : rows;
    const u32 group = index / (GROUP * other), within = index - group * GROUP * other;
    const u32 size = min(u32(GROUP), grouped - group * GROUP);
    const u32 along = group * GROUP + within % size, across = within / size;
    row = ALONG_M ? along : across;
    column = ALONG_M ? across : along;
}

//@ Tiles: tile_place
// The tiles of this CTA; those of a cluster are neighbours. PARTS CTAs side by side compute one tile, a part of K each.
// BEHIND columns of narrower tiles follow.
template <int BLOCK_M, int BLOCK_N, int CLUSTER_M, int CLUSTER_N, int N, int GROUP, bool ALONG_M, int PARTS = 1, int BEHIND = 0>
struct Tiles {
    static constexpr int COLUMNS = (N + BLOCK_N * CLUSTER_N - 1) / (BLOCK_N * CLUSTER_N), CLUSTER = CLUSTER_M * CLUSTER_N * PARTS;
    int rows, index, step;
    DEVICE Tiles(int m)
        : rows((m + BLOCK_M * CLUSTER_M - 1) / (BLOCK_M * CLUSTER_M)), index(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER) {}
    DEVICE bool done() const { return index >= rows * COLUMNS; }
    DEVICE bool last() const { return index + step >= rows * (COLUMNS + BEHIND); }
    DEVICE void next() { index += step; }
    DEVICE void origin(int rank, int& m0, int& n0) const {
        int row, column;
        tile_place<GROUP, ALONG_M>(index, rows, COLUMNS, row, column);
        m0 = (row * CLUSTER_M + rank / CLUSTER_N) * BLOCK_M;
        n0 = (column * CLUSTER_N + rank % CLUSTER_N) * BLOCK_N;
    }
};

//@ TailTiles: Tiles
// The narrower tiles of this CTA, from column FIRST on. They are numbered behind those of the BEFORE columns of tiles before.
template <int BLOCK_M, int BLOCK_N, int FIRST, int BEFORE, int N, int GROUP, bool ALONG_M>
struct TailTiles : Tiles<BLOCK_M, BLOCK_N, 1, 1, N - FIRST, GROUP, ALONG_M> {
    using Columns = Tiles<BLOCK_M, BLOCK_N, 1, 1, N - FIRST, GROUP, ALONG_M>;
    DEVICE TailTiles(int m) : Columns(m) {
        const int before = this->rows * BEFORE % this->step;
        this->index += this->index < before ? this->step - before : -before;
    }
    DEVICE void origin(int rank, int& m0, int& n0) const {
        Columns::origin(rank, m0, n0);
        n0 += FIRST;
    }
};

//@ chaos_start: types
// Chaos: every warp starts its own sequence of delays.
DEVICE u32 chaos_start(u32 seed) { return (seed * 2654435761u) ^ (blockIdx.x * 40503u + threadIdx.x / 32 * 2246822519u); }

//@ chaos_sleep: types
// Sleeps in one case out of four, for up to 2 microseconds.
DEVICE void chaos_sleep(u32& chaos) {
    chaos = chaos * 1664525u + 1013904223u;
    if (chaos >> 30 == 0) asm volatile("nanosleep.u32 %0;" ::"r"(chaos >> 19 & 2047) : "memory");
}
