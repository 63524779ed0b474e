// Products of several groups: where their matrices lie, which rows or elements of K are whose, and in which order a CTA
// computes them. Sections as in prelude.cuh.

//@ tma_load_of_group: TensorMap
DEVICE void tma_load_of_group(u32 dst, const TensorMap& map, int column, int row, int group, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
        "r"(dst), "l"(&map), "r"(column), "r"(row), "r"(group), "r"(bar) : "memory");
}

//@ tma_load_of_group_hinted: TensorMap cache_hints
template <u64 HINT> DEVICE void tma_load_of_group_hinted(u32 dst, const TensorMap& map, int column, int row, int group, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::
        "r"(dst), "l"(&map), "r"(column), "r"(row), "r"(group), "r"(bar), "l"(HINT) : "memory");
}

//@ tma_load_multicast_of_group: TensorMap
DEVICE void tma_load_multicast_of_group(u32 dst, const TensorMap& map, int column, int row, int group, u32 bar, u16 ctas) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::
        "r"(dst), "l"(&map), "r"(column), "r"(row), "r"(group), "r"(bar), "h"(ctas) : "memory");
}

//@ tma_store_of_group_if: TensorMap
DEVICE void tma_store_of_group_if(bool inside, const TensorMap& map, int column, int row, int group, u32 src) {
    asm volatile(
        "{\n.reg .pred inside;\nsetp.ne.b32 inside, %5, 0;\n"
        "@inside cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n}" ::
        "l"(&map), "r"(column), "r"(row), "r"(group), "r"(src), "r"(int(inside)) : "memory");
}

//@ copy_rows: types
// The lanes of a warp store staged rows `begin` to `end`, 16 bytes at a time, to rows `stride` elements apart.
template <int ROW_BYTES, int SHIFT, int MASK, class T>
DEVICE void copy_rows(int begin, int end, u32 box, T* d, i64 stride, int column, int columns) {
    constexpr int CHUNKS = ROW_BYTES / 16, WIDTH = 16 / sizeof(T);
#pragma unroll 1
    for (int i = begin * CHUNKS + threadIdx.x % 32; i < end * CHUNKS; i += 32) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        u32 a, b, c, e;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(e)
                     : "r"(box + row * ROW_BYTES + (chunk ^ (row >> SHIFT & MASK)) * 16) : "memory");
        if (column + chunk * WIDTH < columns)
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(d + row * stride + column + chunk * WIDTH),
                         "r"(a), "r"(b), "r"(c), "r"(e) : "memory");
    }
}

//@ store_rows: tma_store_if copy_rows
// Stores a staged box of ROWS rows, of which only `begin` to `end` may be written: all of them by TMA, fewer by the lanes.
template <int ROWS, int ROW_BYTES, int SHIFT, int MASK, class T>
DEVICE void store_rows(int begin, int end, const TensorMap& map, int column, int row, u32 box, T* d, i64 stride, int columns) {
    const bool whole = begin <= 0 && end >= ROWS;
    if (threadIdx.x % 32 == 0) tma_store_if(whole && column < columns, map, column, row, box);
    if (!whole) copy_rows<ROW_BYTES, SHIFT, MASK>(max(begin, 0), min(end, ROWS), box, d + row * stride, stride, column, columns);
}

//@ store_rows_of_group: tma_store_of_group_if copy_rows
template <int ROWS, int ROW_BYTES, int SHIFT, int MASK, class T>
DEVICE void store_rows_of_group(int begin, int end, const TensorMap& map, int column, int row, int group, u32 box, T* d, i64 stride, int columns) {
    const bool whole = begin <= 0 && end >= ROWS;
    if (threadIdx.x % 32 == 0) tma_store_of_group_if(whole && column < columns, map, column, row, group, box);
    if (!whole) copy_rows<ROW_BYTES, SHIFT, MASK>(max(begin, 0), min(end, ROWS), box, d + row * stride, stride, column, columns);
}

//@ Segment: types
// What one group has: rows, or elements of K; the first, and how many.
struct Segment { int first, rows; };

//@ tall: Segment
// How many rows its tiles cover. TMA loads from multiples of 16 bytes of what is contiguous, which rows of A may be: tiles start
// at multiples of 8 rows. Where K is divided, all rows are every group's, and one that makes no sense has less than no elements.
template <class Groups> DEVICE int tall(const Groups& groups, const Segment& s) {
    if (Groups::ALONG_K) return s.rows < 0 ? 0 : groups.m;
    return s.rows <= 0 ? 0 : s.rows + s.first % 8;
}

//@ load_index: types
// An element of the index operand. Not by a load that need not be coherent (__ldg): a kernel that overlaps with the one before
// starts while that may still write it, and the compiler moves such loads up past the wait.
DEVICE int load_index(const int* p) { return *p; }

//@ ended_segment: Segment load_index
// For each lane the group of number `first` + lane, of `count` that lie one after another; ends[g] is where group g ends. It
// begins where those before it end. One that ends before that, or past `limit`, has -1: nothing belongs to two groups,
// whatever `ends` holds.
DEVICE Segment ended_segment(const int* ends, int count, int limit, int first, int& taken) {
    const int lane = threadIdx.x % 32, group = first + lane, end = group < count ? load_index(ends + group) : 0;
    int most = max(taken, end);
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int left = __shfl_up_sync(0xffffffffu, most, d);
        if (lane >= d) most = max(most, left);
    }
    const int before = __shfl_up_sync(0xffffffffu, most, 1), begin = lane == 0 ? taken : before;
    taken = __shfl_sync(0xffffffffu, most, 31);
    return {begin, group < count && begin <= end && end <= limit ? end - begin : -1};
}

//@ Offs: ended_segment
// Groups of rows that lie one after another.
template <int GROUPS> struct Offs {
    static constexpr int MOST = GROUPS;
    static constexpr bool ALONG_K = false;
    const int* ends;
    int m;
    DEVICE int segments() const { return GROUPS; }
    DEVICE Segment segment(int first, int& taken) const { return ended_segment(ends, GROUPS, m, first, taken); }
    DEVICE int group(int segment) const { return segment; }
    DEVICE int own_end(int m0, int end, int group) const { return end; }
};

//@ KOffs: ended_segment
// Groups along K that lie one after another, of whole k-blocks of BLOCK_K elements.
template <int GROUPS, int K, int BLOCK_K> struct KOffs {
    static constexpr int MOST = GROUPS;
    static constexpr bool ALONG_K = true;
    const int* ends;
    int m;
    DEVICE int segments() const { return GROUPS; }
    DEVICE Segment segment(int first, int& taken) const {
        const Segment s = ended_segment(ends, GROUPS, K, first, taken);
        return {s.first, s.first % BLOCK_K == 0 && s.rows % BLOCK_K == 0 ? s.rows : -1};
    }
    DEVICE int group(int segment) const { return segment; }
    // The sum of a group without elements is that of a block outside of K, where all is zero.
    DEVICE int first_block(const Segment& s) const { return s.rows == 0 ? (K + BLOCK_K - 1) / BLOCK_K : s.first / BLOCK_K; }
    DEVICE int blocks(const Segment& s) const { return max(1, s.rows / BLOCK_K); }
};

//@ GroupIds: Segment load_index
// ids[row] is the row's group. Groups begin at multiples of 128 rows: a block of so many belongs to one, and what does not
// carry its number in there is padding.
template <int GROUPS> struct GroupIds {
    static constexpr int MOST = 0x7fffffff;
    static constexpr bool ALONG_K = false;
    const int* ids;
    int m;
    DEVICE int segments() const { return (m + 127) / 128; }
    DEVICE Segment segment(int first, int& taken) const {
        const int row = (first + threadIdx.x % 32) * 128, group = row < m ? load_index(ids + row) : -1;
        return {row, 0 <= group && group < GROUPS ? min(128, m - row) : 0};
    }
    DEVICE int group(int segment) const { return load_index(ids + segment * 128); }
    // Up to where, of the rows m0 to m0 + end, they carry the group's number, and all rows before them in their block do.
    DEVICE int own_end(int m0, int end, int group) const {
#pragma unroll 1
        for (int done = -(m0 % 128); done < end; done += 32) {
            const int row = done + threadIdx.x % 32;
            const bool own = row < end && load_index(ids + m0 + row) == group;
            const u32 others = ~__ballot_sync(0xffffffffu, own);
            if (others != 0) return done + __ffs(others) - 1;
        }
        return end;
    }
};

//@ Counts: Segment load_index
// Each group has a matrix of m rows, of which counts[g] count. A count that cannot be counts none.
template <int GROUPS> struct Counts {
    static constexpr int MOST = GROUPS;
    static constexpr bool ALONG_K = false;
    const int* counts;
    int m;
    DEVICE int segments() const { return GROUPS; }
    DEVICE Segment segment(int first, int& taken) const {
        const int group = first + threadIdx.x % 32, count = group < GROUPS ? load_index(counts + group) : 0;
        return {0, 0 <= count && count <= m ? count : 0};
    }
    DEVICE int group(int segment) const { return segment; }
    DEVICE int own_end(int m0, int end, int group) const { return end; }
};

//@ Batch: Segment
// Each group has a matrix of m rows.
template <int GROUPS> struct Batch {
    static constexpr int MOST = GROUPS;
    static constexpr bool ALONG_K = false;
    int m;
    DEVICE int segments() const { return GROUPS; }
    DEVICE Segment segment(int first, int& taken) const {
        const int group = first + threadIdx.x % 32;
        return {0, group < GROUPS ? m : 0};
    }
    DEVICE int group(int segment) const { return segment; }
    DEVICE int own_end(int m0, int end, int group) const { return end; }
};

//@ balanced_ctas: types
// The fewest CTAs or clusters, of `most`, that compute `tiles` in as few rounds.
DEVICE int balanced_ctas(int tiles, int most) {
    const int rounds = (tiles + most - 1) / most;
    return (tiles + rounds - 1) / max(rounds, 1);
}

//@ GroupTiles: tall tile_place balanced_ctas
// The tiles of this CTA, one segment's after another's. Each lane of a warp knows one segment of the 32 that are looked at,
// and `upto`, how many of their tiles are in it or before it. Where there are no more segments, it looks once.
// CTAs of a cluster have the same list, of CLUSTER_M x CLUSTER_N neighbours of a segment: `rank` says which of them is whose.
template <class Groups, int BLOCK_M, int BLOCK_N, int N, bool BALANCED, int CLUSTER_M = 1, int CLUSTER_N = 1> struct GroupTiles {
    static constexpr int ROWS = BLOCK_M * CLUSTER_M, CLUSTER = CLUSTER_M * CLUSTER_N;
    static constexpr int COLUMNS = (N + BLOCK_N * CLUSTER_N - 1) / (BLOCK_N * CLUSTER_N);
    static constexpr bool ONE_LOOK = Groups::MOST <= 32;
    const Groups groups;
    int count = 0, step, index = blockIdx.x / CLUSTER, looked_at = 0, taken = 0, before = 0, upto = 0;
    Segment segment, own;
    int m0, n0, group;
    DEVICE GroupTiles(const Groups& groups) : groups(groups) {
        if (ONE_LOOK) {
            look();
            count = tiles();
        } else {
#pragma unroll 1
            for (int first = 0, end = 0; first < groups.segments(); first += 32) count += tiles_of(groups.segment(first, end));
            count = __reduce_add_sync(0xffffffffu, count);
        }
        step = BALANCED ? balanced_ctas(count, gridDim.x / CLUSTER) : gridDim.x / CLUSTER;
    }
    DEVICE int tiles_of(const Segment& s) const { return (tall(groups, s) + ROWS - 1) / ROWS * COLUMNS; }
    // Whether there is no tile at all for this CTA, and its cluster.
    DEVICE bool none() const { return int(blockIdx.x / CLUSTER) >= min(step, count); }
    DEVICE bool done() const { return index >= count; }
    DEVICE bool last() const { return index + step >= count; }
    DEVICE void next() { index += step; }
    DEVICE void look() {
        before += tiles();
        segment = groups.segment(looked_at, taken);
        looked_at += 32;
        upto = tiles_of(segment);
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int left = __shfl_up_sync(0xffffffffu, upto, d);
            if (threadIdx.x % 32 >= d) upto += left;
        }
    }
    DEVICE int tiles() const { return __shfl_sync(0xffffffffu, upto, 31); }
    template <int GROUP, bool ALONG_M> DEVICE void find(int rank) {
#pragma unroll 1
        while (!ONE_LOOK && index >= before + tiles()) look();
        const int owner = __ffs(__ballot_sync(0xffffffffu, index - before < upto)) - 1;
        own = {__shfl_sync(0xffffffffu, segment.first, owner), __shfl_sync(0xffffffffu, segment.rows, owner)};
        const int rows = (tall(groups, own) + ROWS - 1) / ROWS, last = __shfl_sync(0xffffffffu, upto, owner);
        int row, column;
        tile_place<GROUP, ALONG_M>(index - before - (last - rows * COLUMNS), rows, COLUMNS, row, column);
        group = groups.group(looked_at - 32 + owner);
        m0 = (row * CLUSTER_M + rank / CLUSTER_N) * BLOCK_M + (Groups::ALONG_K ? 0 : own.first - own.first % 8);
        n0 = (column * CLUSTER_N + rank % CLUSTER_N) * BLOCK_N;
    }
    // The rows of the tile that are the group's: none where `end` is not above `begin`.
    DEVICE int begin() const { return max(own.first - m0, 0); }
    DEVICE int end() const { return groups.own_end(m0, min(own.first + own.rows - m0, BLOCK_M), group); }
    // The k-blocks of the group.
    DEVICE int first_block() const { return groups.first_block(own); }
    DEVICE int blocks() const { return groups.blocks(own); }
};
