// Block-wise quantisation to FP8, in one pass: each element is read once, and its bits and its block's scale written.
//
// 16 lanes hold 128 elements of a row, 8 neighbours each (a chunk). No header is included. Divisions, products and
// conversions are rounded to nearest even, so that the CPU has the same bits; see `gemmir.quantize`. The one ENTRY that
// is wanted comes last.

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
#define DEVICE __device__ __forceinline__

enum class Input { bf16, f16, f32 };
enum class Format { e4m3, e5m2 };

constexpr int BLOCK = 128;
constexpr int CHUNK = 8;
constexpr int LANES = BLOCK / CHUNK;
constexpr int CHUNKS = 4;  // of each thread, loaded at once to keep enough bytes under way
constexpr u32 INFINITY_BITS = 0x7f800000u;
constexpr u32 ALL = 0xffffffffu;

// Rows, columns and threads of a CTA: 8 scales, one after another, fill a sector of 32 bytes.
constexpr int ROWS_1x128 = 8, COLUMNS_1x128 = CHUNKS * BLOCK, THREADS_1x128 = ROWS_1x128 * LANES;
constexpr int ROWS_128x128 = BLOCK, COLUMNS_128x128 = BLOCK, THREADS_128x128 = ROWS_128x128 / CHUNKS * LANES;

// CTAs that fit an SM at once, for 16-bit input; wider ones have as many bytes under way with half as many.
constexpr int RESIDENT_1x128 = 8, RESIDENT_128x128 = 2;

// Strides in elements; `q` is row-major. `vector`: whole chunks lie at multiples of 16 bytes in x, and of 8 in q.
struct Arguments {
    const u8* x;
    u8* q;
    float* scale;
    i64 x_group, x_row;
    i64 scale_group, scale_row, scale_column;
    u32 rows, columns;
    float largest, least;
    int power_of_two, saturate, vector;
};

template <Input INPUT> constexpr int BYTES = INPUT == Input::f32 ? 4 : 2;
template <Input INPUT> constexpr int WORDS = CHUNK * BYTES<INPUT> / 4;

// The chunks of a thread: where the first begins, bytes from one to the next, and how many elements each has, or more.
struct Chunks {
    const u8* x;
    u8* q;
    i64 x_step, q_step;
    int count[CHUNKS];
};

struct Scaling {
    float scale, inverse;
};

// Those that begin at `row` and `column`; their number of elements is left open.
template <Input INPUT> DEVICE Chunks chunks_at(const Arguments& a, u32 row, u32 column) {
    const i64 x = blockIdx.z * a.x_group + row * a.x_row + column;
    const i64 q = (static_cast<i64>(blockIdx.z) * a.rows + row) * a.columns + column;
    return {a.x + x * BYTES<INPUT>, a.q + q};
}

DEVICE float* scale_at(const Arguments& a, u32 row, u32 column) {
    return a.scale + blockIdx.z * a.scale_group + row * a.scale_row + column * a.scale_column;
}

DEVICE bool whole(const Arguments& a, int count) { return a.vector && count >= CHUNK; }

// A whole chunk by 16 bytes; any other one is zero until `load_rest`.
template <Input INPUT> DEVICE void load_whole(const u8* x, bool whole, u32 (&words)[WORDS<INPUT>]) {
#pragma unroll
    for (int i = 0; i < WORDS<INPUT>; i += 4) {
        const uint4 four = whole ? *reinterpret_cast<const uint4*>(x + 4 * i) : uint4{0, 0, 0, 0};
        words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
    }
}

// What `load_whole` left out, element by element.
template <Input INPUT> DEVICE void load_rest(const u8* x, int count, u32 (&words)[WORDS<INPUT>]) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
        if (i >= count) continue;
        if constexpr (INPUT == Input::f32) {
            words[i] = reinterpret_cast<const u32*>(x)[i];
        } else {
            words[i / 2] |= static_cast<u32>(reinterpret_cast<const u16*>(x)[i]) << (i % 2 * 16);
        }
    }
}

// All loads are issued before the first is waited for.
template <Input INPUT>
DEVICE void load(const Arguments& a, const Chunks& chunks, u32 (&words)[CHUNKS][WORDS<INPUT>]) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        load_whole<INPUT>(chunks.x + c * chunks.x_step, whole(a, chunks.count[c]), words[c]);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        if (whole(a, chunks.count[c])) continue;
        load_rest<INPUT>(chunks.x + c * chunks.x_step, chunks.count[c], words[c]);
    }
}

template <Input INPUT> DEVICE float decoded(const u32 (&words)[WORDS<INPUT>], int i) {
    if constexpr (INPUT == Input::f32) return __uint_as_float(words[i]);
    if constexpr (INPUT == Input::bf16) return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<u16>(words[i / 2] >> (i % 2 * 16))));
    return value;
}

DEVICE u32 magnitude(float value) { return __float_as_uint(value) & 0x7fffffffu; }

// The largest magnitude of a chunk as bits, which order as the numbers do: infinities and NaNs are above all others.
template <Input INPUT> DEVICE u32 amax_of(const u32 (&words)[WORDS<INPUT>]) {
    u32 amax = 0;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) amax = max(amax, magnitude(decoded<INPUT>(words, i)));
    return amax;
}

template <Input INPUT> DEVICE u32 amax_of_finite(const u32 (&words)[WORDS<INPUT>]) {
    u32 amax = 0;
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
        const u32 found = magnitude(decoded<INPUT>(words, i));
        amax = max(amax, found < INFINITY_BITS ? found : 0u);
    }
    return amax;
}

// That of each chunk; whether any lane of the warp holds something that is not finite, and counts for none.
template <Input INPUT> DEVICE bool amaxes(const u32 (&words)[CHUNKS][WORDS<INPUT>], u32 (&amax)[CHUNKS]) {
    u32 most = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) most = max(most, amax[c] = amax_of<INPUT>(words[c]));
    const bool special = __any_sync(ALL, most >= INFINITY_BITS);
    if (!special) return false;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) amax[c] = amax_of_finite<INPUT>(words[c]);
    return true;
}

DEVICE Scaling scaling_of(const Arguments& a, u32 amax_bits) {
    const float amax = fmaxf(__uint_as_float(amax_bits), a.least);
    const float scale = __fdiv_rn(amax, a.largest);
    if (!a.power_of_two) return {scale, __fdiv_rn(a.largest, amax)};
    const float raised = __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0xff800000u);
    return {raised, __fdiv_rn(1.0f, raised)};
}

// Rounded to nearest even and clamped; every NaN is 0x7f.
template <Format FORMAT> DEVICE u32 encoded_pair(float low, float high) {
    u16 pair;
    if constexpr (FORMAT == Format::e4m3) {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    }
    return pair;
}

// `special`: some lane of the warp holds something that is not finite. The conversion itself saturates infinities.
template <Input INPUT, Format FORMAT>
DEVICE void encode(const Arguments& a, const u32 (&words)[WORDS<INPUT>], float inverse, bool special, u32 (&bytes)[CHUNK / 4]) {
    float values[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) values[i] = decoded<INPUT>(words, i);
    if (special) {
        const u32 least_nan = a.saturate ? INFINITY_BITS + 1 : INFINITY_BITS;
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
            if (magnitude(values[i]) >= least_nan) values[i] = __uint_as_float(0x7fffffffu);
        }
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) {
        const u32 low = encoded_pair<FORMAT>(__fmul_rn(values[i], inverse), __fmul_rn(values[i + 1], inverse));
        const u32 high = encoded_pair<FORMAT>(__fmul_rn(values[i + 2], inverse), __fmul_rn(values[i + 3], inverse));
        bytes[i / 4] = low | high << 16;
    }
}

DEVICE void store(u8* q, int count, bool whole, const u32 (&bytes)[CHUNK / 4]) {
    if (whole) {
        *reinterpret_cast<uint2*>(q) = uint2{bytes[0], bytes[1]};
        return;
    }
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
        if (i < count) q[i] = static_cast<u8>(bytes[i / 4] >> (i % 4 * 8));
    }
}

// A CTA: 8 rows, 4 blocks of each. Lanes without elements hold zeros, since all take part in every shuffle.
template <Input INPUT, Format FORMAT> DEVICE void quantize_1x128(const Arguments& a) {
    const u32 lane = threadIdx.x % LANES, row = blockIdx.x * ROWS_1x128 + threadIdx.x / LANES;
    const u32 column = blockIdx.y * COLUMNS_1x128 + lane * CHUNK;
    const int left = row < a.rows ? static_cast<int>(a.columns - column) : 0;
    Chunks chunks = chunks_at<INPUT>(a, row, column);
    chunks.x_step = BLOCK * BYTES<INPUT>, chunks.q_step = BLOCK;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) chunks.count[c] = left - c * BLOCK;
    u32 words[CHUNKS][WORDS<INPUT>], amax[CHUNKS];
    load<INPUT>(a, chunks, words);
    const bool special = amaxes<INPUT>(words, amax);
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) amax[c] = max(amax[c], __shfl_xor_sync(ALL, amax[c], distance));
    }

    // Divisions are dear: lane c makes the scale of block c.
    u32 own = amax[0];
#pragma unroll
    for (int c = 1; c < CHUNKS; ++c) own = lane == c ? amax[c] : own;
    const Scaling found = scaling_of(a, own);
    const u32 block = blockIdx.y * CHUNKS + lane;
    if (lane < CHUNKS && row < a.rows && block * BLOCK < a.columns) *scale_at(a, row, block) = found.scale;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        u32 bytes[CHUNK / 4];
        encode<INPUT, FORMAT>(a, words[c], __shfl_sync(ALL, found.inverse, c, LANES), special, bytes);
        store(chunks.q + c * chunks.q_step, chunks.count[c], whole(a, chunks.count[c]), bytes);
    }
}

// A CTA: one block, of which each thread holds parts of 4 rows.
template <Input INPUT, Format FORMAT> DEVICE void quantize_128x128(const Arguments& a) {
    constexpr int STEP = ROWS_128x128 / CHUNKS, WARPS = THREADS_128x128 / 32;
    __shared__ u32 amax_of_warp[WARPS];
    const u32 row = blockIdx.x * ROWS_128x128 + threadIdx.x / LANES;
    const u32 column = blockIdx.y * COLUMNS_128x128 + threadIdx.x % LANES * CHUNK;
    const int left = static_cast<int>(a.columns - column);
    Chunks chunks = chunks_at<INPUT>(a, row, column);
    chunks.x_step = STEP * BYTES<INPUT> * a.x_row, chunks.q_step = STEP * static_cast<i64>(a.columns);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) chunks.count[c] = row + c * STEP < a.rows ? left : 0;
    u32 words[CHUNKS][WORDS<INPUT>], amax[CHUNKS];
    load<INPUT>(a, chunks, words);
    const bool special = amaxes<INPUT>(words, amax);
    const u32 own = __reduce_max_sync(ALL, max(max(amax[0], amax[1]), max(amax[2], amax[3])));
    if (threadIdx.x % 32 == 0) amax_of_warp[threadIdx.x / 32] = own;
    __syncthreads();
    const Scaling found = scaling_of(a, __reduce_max_sync(ALL, amax_of_warp[threadIdx.x % WARPS]));
    if (threadIdx.x == 0) *scale_at(a, blockIdx.x, blockIdx.y) = found.scale;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
        u32 bytes[CHUNK / 4];
        encode<INPUT, FORMAT>(a, words[c], found.inverse, special, bytes);
        store(chunks.q + c * chunks.q_step, chunks.count[c], whole(a, chunks.count[c]), bytes);
    }
}

#define ENTRY(RECIPE, INPUT, FORMAT)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS_##RECIPE, RESIDENT_##RECIPE * 2 / BYTES<Input::INPUT>)  \
        quantize_##RECIPE##_##INPUT##_##FORMAT(const __grid_constant__ Arguments a) {                            \
        quantize_##RECIPE<Input::INPUT, Format::FORMAT>(a);                                                      \
    }
