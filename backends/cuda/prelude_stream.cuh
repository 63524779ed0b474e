// Wrappers of kernels for few rows, through which weights pass once: see prelude.cuh.

//@ launch_dependents: types
DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

//@ wait_for_grid: types
DEVICE void wait_for_grid() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

//@ tma_prefetch: TensorMap
DEVICE void tma_prefetch(const TensorMap& map, int column, int row) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(column), "r"(row) : "memory");
}

//@ cache_hints: types
// Policies of L2 for all lines of an access, as createpolicy.fractional makes them.
constexpr u64 EVICT_FIRST = 0x12f0000000000000ull, EVICT_LAST = 0x14f0000000000000ull;

//@ tma_load_hinted: TensorMap cache_hints
template <u64 HINT> DEVICE void tma_load_hinted(u32 dst, const TensorMap& map, int column, int row, u32 bar) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst), "l"(&map), "r"(column), "r"(row), "r"(bar), "l"(HINT) : "memory");
}

//@ copy_scales: store_shared_f32
// A warp copies the weight scales of ROWS k-blocks from `first` on, and of COLUMNS times STEP columns from `column` on, many
// loads in flight; zeros from `blocks` k-blocks and `columns` columns on. Coherent loads: the kernel before may have written them.
template <int ROWS, int COLUMNS, int STEP>
DEVICE void copy_scales(u32 slot, const float* scales, int first, int blocks, int column, int columns, i64 stride_k, i64 stride_n) {
    constexpr int COUNT = ROWS * COLUMNS, LOADS = COUNT < 128 ? (COUNT + 31) / 32 : 4;
#pragma unroll 1
    for (int start = threadIdx.x % 32; start < COUNT; start += 32 * LOADS) {
        float value[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            const int at = start + 32 * i, k = first + at / COLUMNS, n = column + at % COLUMNS * STEP;
            value[i] = at < COUNT && k < blocks && n < columns ? scales[k * stride_k + n / 128 * stride_n] : 0.f;
        }
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            if (start + 32 * i < COUNT) store_shared_f32(slot + (start + 32 * i) * 4, value[i]);
        }
    }
}

//@ promote_wave: load_shared_f32 load_shared_f32x2 settled
// `promote_columns` where all rows share the scale at `row`.
template <int COUNT>
DEVICE void promote_wave(float (&total)[COUNT], const float (&partial)[COUNT], u32 row, u32 columns) {
    const float shared = load_shared_f32(row);
    columns += threadIdx.x % 4 * 8;
#pragma unroll
    for (int c = 0; c < COUNT / 4; ++c) {
        float column[2];
        load_shared_f32x2(columns + c * 32, column[0], column[1]);
        const float scale[2] = {__fmul_rn(shared, column[0]), __fmul_rn(shared, column[1])};
#pragma unroll
        for (int i = 0; i < 4; ++i) total[4 * c + i] = __fmaf_rn(partial[4 * c + i], scale[i % 2], total[4 * c + i]);
    }
    settled(total);
}

//@ stmatrix_trans_x4: types
DEVICE void stmatrix_trans_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::
        "r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

//@ stmatrix_trans_x2: types
DEVICE void stmatrix_trans_x2(u32 address, u32 a, u32 b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

//@ stage_rows: stmatrix_trans_x4 stmatrix_trans_x2
// Puts a warp's 16 rows of a fragment into a box of COLUMNS columns, as 16 of these: a fragment's column is a row of the box.
// Lane l addresses row l % 8 of the 8 columns l / 8 % 2 and, if it is one of the last 16, 8 rows further on.
template <int COLUMNS, int SHIFT, int MASK, int COUNT> DEVICE void stage_rows(const float (&f)[COUNT], u32 box) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = lane / 16 * 8 + lane % 8;
    const u32 chunk = (warp * 2 + lane / 8 % 2) ^ (row >> SHIFT & MASK);
    box += row * COLUMNS * 2 + chunk * 16;
#pragma unroll
    for (int c = 0; c < COUNT / 8; ++c) {
        const int i = 8 * c;
        stmatrix_trans_x4(box + c * 16 * COLUMNS * 2, pack(f[i], f[i + 1]), pack(f[i + 2], f[i + 3]),
                          pack(f[i + 4], f[i + 5]), pack(f[i + 6], f[i + 7]));
    }
    if constexpr (COUNT % 8 != 0) {
        const int i = COUNT - 4;
        stmatrix_trans_x2(box + COUNT / 8 * 16 * COLUMNS * 2, pack(f[i], f[i + 1]), pack(f[i + 2], f[i + 3]));
    }
}
