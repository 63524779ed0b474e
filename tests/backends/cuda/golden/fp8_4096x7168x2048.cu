// D[M, 7168] = A[M, 2048] @ B. A CTA makes 128 x 256 tiles, 1 x 1 CTAs form a cluster.
// 384 threads and 231584 bytes of shared memory a CTA. Made by gemmir.

constexpr int N = 7168;

extern "C" __global__ void __launch_bounds__(384, 1)
gemm_e4m3_e4m3_128x256_cluster1x1_stages4(
    const __grid_constant__ TensorMap map_a,
    const __grid_constant__ TensorMap map_b,
    const __grid_constant__ TensorMap map_scale_a,
    const float* scale_b,
    i64 scale_b_stride_k,
    i64 scale_b_stride_n,
    const __grid_constant__ TensorMap map_d64,
    int m) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 smem = smem_address(shared);
    const int warp = warp_uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    // Shared memory: rings of slots for operands and scales, rows on their way out, barriers.
    const u32 ring_a = smem;
    const u32 ring_b = smem + 65536;
    const u32 staging = smem + 196608;
    const u32 ring_scale_a = smem + 229376;
    const u32 ring_scale_b = smem + 231424;
    const u32 full = smem + 231488;
    const u32 empty = smem + 231520;
    const u32 staged = smem + 231552;
    const u32 drained = smem + 231568;
    if (threadIdx.x == 0) {
        prefetch_tensormap(map_a);
        prefetch_tensormap(map_b);
        prefetch_tensormap(map_scale_a);
    }
    // full: a slot is loaded; empty: it is read; staged: rows may leave; drained: they have left.
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; ++i) mbarrier_init(full + i * 8, 2);
        for (int i = 0; i < 4; ++i) mbarrier_init(empty + i * 8, 8);
        for (int i = 0; i < 2; ++i) mbarrier_init(staged + i * 8, 4);
        for (int i = 0; i < 2; ++i) mbarrier_init(drained + i * 8, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warp < 8) {
        const int group = warp / 4;
        // Math warpgroups: multiply slot by slot, add each partial sum, scaled, to the totals, stage finished rows.
        setmaxnreg_inc<232>();
        Cursor<4> at;
        Cursor<1> out;
        float partial[64];
        float total0[64];
        float total1[64];
        Scales<2, 1> scales;
        Scales<2, 1> next_scales;
        mbarrier_wait(full + at.stage * 8, at.parity);
        scales.load(ring_scale_a + at.stage * 512 + (warp % 4 * 16 + lane / 4) * 4, ring_scale_b + at.stage * 16 + group * 4);
        __syncwarp();
        wgmma_fence();
        multiply<true>(partial, ring_a + at.stage * 16384, ring_b + at.stage * 32768 + group * 16384);
        wgmma_commit();
        for (Tiles<128, 256, 1, 1, N, 1, false> tiles(m); !tiles.done(); tiles.next()) {
            zero(total0);
            zero(total1);
#pragma unroll 1
            for (int k = 0; k < 15; ++k) {
                wgmma_wait<0>();
                settled(partial);
                // total = partial * (row scale * column scale) + total, in f32.
                promote<128>(total0, partial, scales.row[0], scales.step);
                wgmma_fence();
                multiply<true>(partial, ring_a + at.stage * 16384 + 8192, ring_b + at.stage * 32768 + group * 16384);
                wgmma_commit();
                const auto ahead = at.next();
                mbarrier_wait(full + ahead.stage * 8, ahead.parity);
                next_scales.load(ring_scale_a + ahead.stage * 512 + (warp % 4 * 16 + lane / 4) * 4, ring_scale_b + ahead.stage * 16 + group * 4);
                __syncwarp();
                wgmma_wait<0>();
                settled(partial);
                // This warp has read the slot.
                if (lane == 0) mbarrier_arrive(empty + at.stage * 8);
                promote<128>(total1, partial, scales.row[1], scales.step);
                wgmma_fence();
                // In flight while the loop goes round, and while a tile's rows are staged: the tensor cores never wait for them.
                multiply<true>(partial, ring_a + ahead.stage * 16384, ring_b + ahead.stage * 32768 + group * 16384);
                wgmma_commit();
                at.advance();
                scales = next_scales;
            }
            wgmma_wait<0>();
            settled(partial);
            promote<128>(total0, partial, scales.row[0], scales.step);
            wgmma_fence();
            multiply<true>(partial, ring_a + at.stage * 16384 + 8192, ring_b + at.stage * 32768 + group * 16384);
            wgmma_commit();
            // Until the store thread has sent what was staged before.
            mbarrier_wait(drained + group * 8, out.parity ^ 1);
            // Round, and lay the rows out as TMA stores them.
            stage_columns<0, 64, 0, 7>(total0, staging + group * 16384, warp % 4 * 16);
            stage_columns<32, 64, 0, 7>(total0, staging + group * 16384 + 8192, warp % 4 * 16);
            // Ordinary accesses before this come before TMA's after the next signal.
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(staged + group * 8);
            out.advance();
            const auto ahead = at.next();
            // Nothing follows the very last k-block: what is multiplied after it is dropped.
            if (!tiles.last()) mbarrier_wait(full + ahead.stage * 8, ahead.parity);
            next_scales.load(ring_scale_a + ahead.stage * 512 + (warp % 4 * 16 + lane / 4) * 4, ring_scale_b + ahead.stage * 16 + group * 4);
            __syncwarp();
            wgmma_wait<0>();
            settled(partial);
            if (lane == 0) mbarrier_arrive(empty + at.stage * 8);
            promote<128>(total1, partial, scales.row[1], scales.step);
            wgmma_fence();
            multiply<true>(partial, ring_a + ahead.stage * 16384, ring_b + ahead.stage * 32768 + group * 16384);
            wgmma_commit();
            at.advance();
            scales = next_scales;
            mbarrier_wait(drained + group * 8, out.parity ^ 1);
            stage_columns<0, 64, 0, 7>(total1, staging + group * 16384, warp % 4 * 16);
            stage_columns<32, 64, 0, 7>(total1, staging + group * 16384 + 8192, warp % 4 * 16);
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) mbarrier_arrive(staged + group * 8);
            out.advance();
        }
        wgmma_wait<0>();
        settled(partial);
    } else {
        setmaxnreg_dec<40>();
        if (warp == 8) {
            // Producer warp: keeps the ring full, one k-block of A and B in a slot, with its scales if it has any.
            Cursor<4> at;
            for (Tiles<128, 256, 1, 1, N, 1, false> tiles(m); !tiles.done(); tiles.next()) {
                int m0, n0;
                tiles.origin(0, m0, n0);
#pragma unroll 1
                for (int k = 0; k < 16; ++k) {
                    // Until every math warp has read what the slot held before.
                    mbarrier_wait(empty + at.stage * 8, at.parity ^ 1);
                    if (lane == 0) {
                        tma_load(ring_a + at.stage * 16384, map_a, k * 128, m0, full + at.stage * 8);
                        tma_load(ring_b + at.stage * 32768, map_b, k * 128, n0, full + at.stage * 8);
                    }
                    __syncwarp();
                    // The slot is full once all these bytes have arrived.
                    if (lane == 0) mbarrier_expect(full + at.stage * 8, 49152);
                    at.advance();
                }
            }
        }
        if (warp == 9 && lane == 0) {
            // Store thread: sends off what is staged, one warpgroup's at a time.
            Cursor<1> at;
            for (Tiles<128, 256, 1, 1, N, 1, false> tiles(m); !tiles.done(); tiles.next()) {
                int m0, n0;
                tiles.origin(0, m0, n0);
                mbarrier_wait(staged, at.parity);
                tma_store_if(n0 < N, map_d64, n0, m0, staging);
                tma_store_if(n0 + 64 < N, map_d64, n0 + 64, m0, staging + 8192);
                tma_store_commit();
                // TMA has read the rows: others may be staged.
                tma_store_wait_read<0>();
                mbarrier_arrive(drained);
                mbarrier_wait(staged + 8, at.parity);
                tma_store_if(n0 + 128 < N, map_d64, n0 + 128, m0, staging + 16384);
                tma_store_if(n0 + 192 < N, map_d64, n0 + 192, m0, staging + 24576);
                tma_store_commit();
                tma_store_wait_read<0>();
                mbarrier_arrive(drained + 8);
                at.advance();
                mbarrier_wait(staged, at.parity);
                tma_store_if(n0 < N, map_d64, n0, m0 + 64, staging);
                tma_store_if(n0 + 64 < N, map_d64, n0 + 64, m0 + 64, staging + 8192);
                tma_store_commit();
                tma_store_wait_read<0>();
                mbarrier_arrive(drained);
                mbarrier_wait(staged + 8, at.parity);
                tma_store_if(n0 + 128 < N, map_d64, n0 + 128, m0 + 64, staging + 16384);
                tma_store_if(n0 + 192 < N, map_d64, n0 + 192, m0 + 64, staging + 24576);
                tma_store_commit();
                tma_store_wait_read<0>();
                mbarrier_arrive(drained + 8);
                at.advance();
            }
        }
        if (warp == 10) {
            // Scales warp: fills in the scales of a slot, so that the producer has none to wait for, and no fence.
            Cursor<4> at;
            for (Tiles<128, 256, 1, 1, N, 1, false> tiles(m); !tiles.done(); tiles.next()) {
                int m0, n0;
                tiles.origin(0, m0, n0);
#pragma unroll 1
                for (int k = 0; k < 16; ++k) {
                    // Before the wait, so that the load's latency hides behind it.
                    const int column = n0 + lane * 128;
                    const float scales = lane < 2 && column < N ? __ldg(scale_b + k * scale_b_stride_k + column / 128 * scale_b_stride_n) : 0.f;
                    mbarrier_wait(empty + at.stage * 8, at.parity ^ 1);
                    // What the math warps read of the slot by ordinary loads comes before TMA's writes.
                    fence_proxy_async();
                    if (lane == 0) tma_load(ring_scale_a + at.stage * 512, map_scale_a, m0, k, full + at.stage * 8);
                    if (lane < 2) store_shared_f32(ring_scale_b + at.stage * 16 + lane * 4, scales);
                    __syncwarp();
                    if (lane == 0) mbarrier_expect(full + at.stage * 8, 512);
                    at.advance();
                }
            }
        }
    }
}
