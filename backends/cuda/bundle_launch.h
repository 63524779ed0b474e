/*
 * Launching gemmir kernels with the CUDA driver API and nothing else. C11 or C++17; link with -lcuda.
 *
 * The same rules as those of gemmir's Python launcher, over tables that are printed from a kernel's manifest.
 * Nothing here allocates memory, on the host or on the device. Every function may be called from any thread.
 */
#ifndef GEMMIR_BUNDLE_LAUNCH_1
#define GEMMIR_BUNDLE_LAUNCH_1

#include <cuda.h>
#include <stdint.h>
#include <string.h>

enum { GEMMIR_MAX_INPUTS = 16, GEMMIR_MAX_PARAMS = 40, GEMMIR_MAX_MAPS = 16 };

typedef enum gemmir_status {
    GEMMIR_OK = 0,
    GEMMIR_BAD_SHAPE = 1,     /* a dimension is not what the kernel was compiled for, or M differs */
    GEMMIR_BAD_LAYOUT = 2,    /* strides that do not fit the memory order that the kernel needs */
    GEMMIR_BAD_ALIGNMENT = 3, /* an address or stride that is not a multiple of 16 bytes, or of an element */
    GEMMIR_TOO_LARGE = 4,     /* beyond what the hardware can address */
    GEMMIR_OVERLAP = 5,       /* the output overlaps an input */
    GEMMIR_WRONG_DEVICE = 6,  /* the current context's device cannot run the kernel */
    GEMMIR_CUDA_ERROR = 7     /* a driver call failed: see `cuda` */
} gemmir_status;

/* What came of a call. `argument`: number of the tensor at fault (the output is -1), or -2. */
typedef struct gemmir_result {
    gemmir_status status;
    CUresult cuda;
    int argument;
    const char *message;
} gemmir_result;

/* Device memory, with the shape of the mathematics (A: M x K, B: K x N) and strides in elements, as torch has them. */
typedef struct gemmir_tensor {
    CUdeviceptr address;
    int64_t shape[3];
    int64_t strides[3];
} gemmir_tensor;

typedef struct gemmir_tensor_spec {
    int rank;
    int64_t shape[3]; /* -1: M */
    int order[3];     /* dimensions from slowest to fastest in memory */
    int item_bytes;
    CUtensorMapDataType type;
    int tma, pointer, addend, free_strides;
    unsigned strided; /* bit d: the kernel takes the stride of dimension d */
} gemmir_tensor_spec;

typedef enum gemmir_param_kind {
    GEMMIR_TENSOR_MAP,
    GEMMIR_POINTER,
    GEMMIR_STRIDE,
    GEMMIR_ROWS,
    GEMMIR_OVERLAPS,
    GEMMIR_SEED
} gemmir_param_kind;

typedef struct gemmir_param_spec {
    gemmir_param_kind kind;
    int tensor; /* -1: the output */
    int dimension;
    cuuint32_t box[2];
    CUtensorMapSwizzle swizzle;
} gemmir_param_spec;

typedef struct gemmir_spec {
    const char *entry;
    int num_inputs, num_params;
    const gemmir_tensor_spec *tensors; /* the inputs, then the output */
    const gemmir_param_spec *params;
    int64_t grid_rows, grid_repeats, grid_extra, grid_columns;
    int cluster_ctas, tile_ctas, balanced;
    unsigned threads, shared_bytes;
    int waits;
    int capability[2];
    int tma_alignment;
    int64_t max_extent, max_pitch;
} gemmir_spec;

/* A kernel in one context. Made by a load function, ended by gemmir_unload. */
typedef struct gemmir_kernel {
    const gemmir_spec *spec;
    CUmodule module;
    CUfunction function;
    int64_t clusters; /* that run at once */
} gemmir_kernel;

static inline gemmir_result gemmir_result_of(gemmir_status status, CUresult cuda, int argument, const char *message) {
    gemmir_result result;
    result.status = status;
    result.cuda = cuda;
    result.argument = argument;
    result.message = message;
    return result;
}

static inline gemmir_result gemmir_ok(void) { return gemmir_result_of(GEMMIR_OK, CUDA_SUCCESS, -2, "ok"); }

static inline gemmir_result gemmir_bad(gemmir_status status, int argument, const char *message) {
    return gemmir_result_of(status, CUDA_SUCCESS, argument, message);
}

#define GEMMIR_CUDA(call, name)                                                               \
    do {                                                                                      \
        CUresult cuda_ = (call);                                                              \
        if (cuda_ != CUDA_SUCCESS) return gemmir_result_of(GEMMIR_CUDA_ERROR, cuda_, -2, name " failed"); \
    } while (0)

#define GEMMIR_CHECK(call)                              \
    do {                                                \
        gemmir_result checked_ = (call);                \
        if (checked_.status != GEMMIR_OK) return checked_; \
    } while (0)

/* Arithmetic on sizes that are not negative stops at a number over every limit rather than overflowing. */
static inline int64_t gemmir_times(int64_t a, int64_t b) {
    const int64_t limit = INT64_MAX / 8;
    return a != 0 && b > limit / a ? limit : a * b;
}

static inline int64_t gemmir_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* Cluster tiles that there can be with M = m. */
static inline int64_t gemmir_tiles(const gemmir_spec *spec, int64_t m) {
    int64_t tall = gemmir_times(gemmir_ceil_div(m, spec->grid_rows), spec->grid_repeats) + spec->grid_extra;
    if (spec->grid_extra > 0 && tall > m) tall = m;
    return gemmir_times(tall, spec->grid_columns);
}

/* CTAs of a launch with M = m > 0. */
static inline int64_t gemmir_grid(const gemmir_spec *spec, int64_t m, int64_t resident) {
    int64_t tiles = gemmir_tiles(spec, m);
    int64_t clusters = tiles < resident ? tiles : resident;
    if (spec->balanced) clusters = gemmir_ceil_div(tiles, gemmir_ceil_div(tiles, resident));
    return clusters * spec->cluster_ctas;
}

static inline int64_t gemmir_elements(const gemmir_tensor_spec *spec, const gemmir_tensor *tensor) {
    int64_t count = 1;
    for (int d = 0; d < spec->rank; ++d) count = gemmir_times(count, tensor->shape[d]);
    return count;
}

/* Bytes from one row to the next; where there is only one, any legal pitch. */
static inline int64_t gemmir_row_pitch(const gemmir_tensor_spec *spec, const gemmir_tensor *tensor, int64_t align) {
    int64_t bytes = gemmir_times(tensor->shape[spec->order[spec->rank - 1]], spec->item_bytes);
    if (spec->rank >= 2 && tensor->shape[spec->order[spec->rank - 2]] > 1)
        return gemmir_times(tensor->strides[spec->order[spec->rank - 2]], spec->item_bytes);
    return gemmir_ceil_div(bytes, align) * align;
}

/* Bytes from one group's matrix to the next of a tensor of rank 3. */
static inline int64_t gemmir_group_pitch(const gemmir_tensor_spec *spec, const gemmir_tensor *tensor, int64_t align) {
    int64_t rows = tensor->shape[spec->order[1]];
    if (tensor->shape[spec->order[0]] > 1) return gemmir_times(tensor->strides[spec->order[0]], spec->item_bytes);
    return gemmir_times(gemmir_row_pitch(spec, tensor, align), rows > 1 ? rows : 1);
}

static inline gemmir_result gemmir_check_pitch(const gemmir_spec *spec, int64_t pitch, int number) {
    if (pitch % spec->tma_alignment != 0)
        return gemmir_bad(GEMMIR_BAD_ALIGNMENT, number, "a stride is not a multiple of 16 bytes");
    if (pitch >= spec->max_pitch) return gemmir_bad(GEMMIR_TOO_LARGE, number, "a stride is not below 2^40 bytes");
    return gemmir_ok();
}

static inline gemmir_result gemmir_check_tma(const gemmir_spec *spec, const gemmir_tensor_spec *wanted,
                                             const gemmir_tensor *tensor, int number) {
    const int fast = wanted->order[wanted->rank - 1];
    const int64_t align = spec->tma_alignment;
    const int64_t bytes = gemmir_times(tensor->shape[fast], wanted->item_bytes);
    const int64_t pitch = gemmir_row_pitch(wanted, tensor, align);
    if (tensor->shape[fast] > 1 && tensor->strides[fast] != 1)
        return gemmir_bad(GEMMIR_BAD_LAYOUT, number, "the fastest dimension is not contiguous");
    if (pitch < bytes) return gemmir_bad(GEMMIR_BAD_LAYOUT, number, "rows overlap");
    if (wanted->rank == 3) {
        int64_t rows = tensor->shape[wanted->order[1]], groups = tensor->shape[wanted->order[0]];
        int64_t group = gemmir_group_pitch(wanted, tensor, align);
        int behind = group >= gemmir_times(pitch, rows - 1) + bytes;
        int beside = group >= bytes && pitch >= gemmir_times(group, groups - 1) + bytes; /* row by row */
        if (!behind && !beside)
            return gemmir_bad(GEMMIR_BAD_LAYOUT, number, "the matrices of groups overlap");
        GEMMIR_CHECK(gemmir_check_pitch(spec, group, number));
    }
    if (tensor->address % (CUdeviceptr)align != 0)
        return gemmir_bad(GEMMIR_BAD_ALIGNMENT, number, "the address is not a multiple of 16 bytes");
    return gemmir_check_pitch(spec, pitch, number);
}

static inline gemmir_result gemmir_check_dense(const gemmir_tensor_spec *wanted, const gemmir_tensor *tensor,
                                               int number) {
    int64_t stride = 1;
    for (int i = wanted->rank - 1; i >= 0; --i) {
        int d = wanted->order[i];
        int free_stride = (wanted->strided >> d) & 1u;
        if (tensor->shape[d] > 1 && !free_stride && tensor->strides[d] != stride)
            return gemmir_bad(GEMMIR_BAD_LAYOUT, number, "the tensor does not lie densely in its memory order");
        stride = gemmir_times(stride, tensor->shape[d]);
    }
    return gemmir_ok();
}

static inline gemmir_result gemmir_check_memory(const gemmir_spec *spec, const gemmir_tensor_spec *wanted,
                                                const gemmir_tensor *tensor, int number) {
    if (gemmir_elements(wanted, tensor) == 0 || !(wanted->tma || wanted->pointer)) return gemmir_ok();
    for (int d = 0; d < wanted->rank; ++d)
        if (tensor->shape[d] > 1 && tensor->strides[d] < 0)
            return gemmir_bad(GEMMIR_BAD_LAYOUT, number, "a stride is negative");
    if (wanted->tma)
        GEMMIR_CHECK(gemmir_check_tma(spec, wanted, tensor, number));
    else if (!wanted->free_strides)
        GEMMIR_CHECK(gemmir_check_dense(wanted, tensor, number));
    if (wanted->pointer && tensor->address % (CUdeviceptr)wanted->item_bytes != 0)
        return gemmir_bad(GEMMIR_BAD_ALIGNMENT, number, "the address is not a multiple of an element");
    return gemmir_ok();
}

/* Dimensions are those of the kernel, and all that stand for M are one number, which goes to *m (-1: none yet). */
static inline gemmir_result gemmir_check_shape(const gemmir_spec *spec, const gemmir_tensor_spec *wanted,
                                               const gemmir_tensor *tensor, int number, int64_t *m) {
    for (int d = 0; d < wanted->rank; ++d) {
        int64_t extent = tensor->shape[d];
        if (extent < 0) return gemmir_bad(GEMMIR_BAD_SHAPE, number, "a dimension is negative");
        if (wanted->shape[d] >= 0 && extent != wanted->shape[d])
            return gemmir_bad(GEMMIR_BAD_SHAPE, number, "a dimension is not what the kernel was compiled for");
        if (wanted->shape[d] < 0 && *m >= 0 && extent != *m)
            return gemmir_bad(GEMMIR_BAD_SHAPE, number, "M differs between tensors");
        if (wanted->shape[d] < 0) *m = extent;
        if (extent > spec->max_extent) return gemmir_bad(GEMMIR_TOO_LARGE, number, "a dimension is more than a kernel counts");
    }
    return gemmir_ok();
}

/* One past the last byte that the tensor's elements can lie in. */
static inline CUdeviceptr gemmir_end(const gemmir_tensor_spec *wanted, const gemmir_tensor *tensor) {
    int64_t last = 0;
    if (gemmir_elements(wanted, tensor) == 0) return tensor->address;
    for (int d = 0; d < wanted->rank; ++d)
        if (tensor->shape[d] > 1) last += gemmir_times(tensor->shape[d] - 1, tensor->strides[d]);
    return tensor->address + (CUdeviceptr)gemmir_times(last + 1, wanted->item_bytes);
}

static inline int gemmir_same_place(const gemmir_tensor_spec *spec, const gemmir_tensor_spec *other,
                                    const gemmir_tensor *a, const gemmir_tensor *b) {
    if (a->address != b->address || spec->type != other->type) return 0;
    for (int d = 0; d < spec->rank; ++d)
        if (a->strides[d] != b->strides[d]) return 0;
    return 1;
}

/* The output may be operand C itself, each tile of which is read before that of the output is written. */
static inline gemmir_result gemmir_check_overlap(const gemmir_spec *spec, const gemmir_tensor *const *tensors) {
    const gemmir_tensor_spec *out_spec = &spec->tensors[spec->num_inputs];
    const gemmir_tensor *out = tensors[spec->num_inputs];
    const CUdeviceptr start = out->address, end = gemmir_end(out_spec, out);
    for (int i = 0; i < spec->num_inputs; ++i) {
        const gemmir_tensor_spec *in_spec = &spec->tensors[i];
        if (start >= gemmir_end(in_spec, tensors[i]) || tensors[i]->address >= end) continue;
        if (!(in_spec->addend && gemmir_same_place(in_spec, out_spec, tensors[i], out)))
            return gemmir_bad(GEMMIR_OVERLAP, -1, "the output overlaps an input");
    }
    return gemmir_ok();
}

/* Check the inputs and the output that `tensors` points to, in that order; M goes to *m. Makes no CUDA call. */
static inline gemmir_result gemmir_check(const gemmir_spec *spec, const gemmir_tensor *const *tensors, int64_t *m) {
    const gemmir_tensor_spec *out_spec = &spec->tensors[spec->num_inputs];
    *m = -1;
    for (int i = 0; i <= spec->num_inputs; ++i)
        GEMMIR_CHECK(gemmir_check_shape(spec, &spec->tensors[i], tensors[i], i < spec->num_inputs ? i : -1, m));
    if (out_spec->shape[out_spec->rank - 2] >= 0) *m = out_spec->shape[out_spec->rank - 2];
    if (gemmir_times(gemmir_tiles(spec, *m), spec->tile_ctas) > spec->max_extent)
        return gemmir_bad(GEMMIR_TOO_LARGE, -2, "over 2^31 - 1 tiles");
    for (int i = 0; i <= spec->num_inputs; ++i)
        GEMMIR_CHECK(gemmir_check_memory(spec, &spec->tensors[i], tensors[i], i < spec->num_inputs ? i : -1));
    return gemmir_check_overlap(spec, tensors);
}

/* The tensor map `param` over `tensor`. */
static inline CUresult gemmir_encode(CUtensorMap *map, const gemmir_spec *spec, const gemmir_param_spec *param,
                                     const gemmir_tensor_spec *wanted, const gemmir_tensor *tensor) {
    const int rank = wanted->rank;
    const cuuint64_t extents[3] = {
        (cuuint64_t)tensor->shape[wanted->order[rank - 1]],
        rank >= 2 ? (cuuint64_t)tensor->shape[wanted->order[rank - 2]] : 1,
        rank == 3 ? (cuuint64_t)tensor->shape[wanted->order[0]] : 1,
    };
    const cuuint64_t pitches[2] = {
        (cuuint64_t)gemmir_row_pitch(wanted, tensor, spec->tma_alignment),
        rank == 3 ? (cuuint64_t)gemmir_group_pitch(wanted, tensor, spec->tma_alignment) : 0,
    };
    const cuuint32_t box[3] = {param->box[0], param->box[1], 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    return cuTensorMapEncodeTiled(map, wanted->type, rank == 3 ? 3 : 2, (void *)(uintptr_t)tensor->address, extents,
                                  pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, param->swizzle,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* A kernel parameter that is no tensor map. */
typedef union gemmir_scalar {
    CUdeviceptr address;
    int64_t stride;
    int32_t number;
    uint32_t seed;
} gemmir_scalar;

static inline gemmir_scalar gemmir_scalar_of(const gemmir_param_spec *param, const gemmir_tensor *tensor, int64_t m,
                                             int overlap) {
    gemmir_scalar value;
    memset(&value, 0, sizeof value);
    switch (param->kind) {
    case GEMMIR_POINTER: value.address = tensor->address; break;
    case GEMMIR_STRIDE: value.stride = tensor->strides[param->dimension]; break;
    case GEMMIR_ROWS: value.number = (int32_t)m; break;
    case GEMMIR_OVERLAPS: value.number = overlap; break;
    case GEMMIR_SEED:
    case GEMMIR_TENSOR_MAP: break; /* zero; a map is no scalar */
    }
    return value;
}

static inline gemmir_result gemmir_start(const gemmir_kernel *kernel, int64_t m, int overlap, CUstream stream,
                                         void **params) {
    const gemmir_spec *spec = kernel->spec;
    CUlaunchAttribute attribute;
    CUlaunchConfig config;
    memset(&attribute, 0, sizeof attribute);
    memset(&config, 0, sizeof config);
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    config.gridDimX = (unsigned)gemmir_grid(spec, m, kernel->clusters);
    config.blockDimX = spec->threads;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = spec->shared_bytes;
    config.hStream = stream;
    config.attrs = overlap ? &attribute : NULL;
    config.numAttrs = overlap ? 1 : 0;
    GEMMIR_CUDA(cuLaunchKernelEx(&config, kernel->function, params, NULL), "cuLaunchKernelEx");
    return gemmir_ok();
}

/*
 * Check, and launch on `stream`, without waiting. `tensors` points to the inputs and then to the output.
 *
 * `overlap` (not 0): start while the kernel before on the stream ends, if this one waits for it by itself. With M = 0
 * there is nothing to compute, and nothing is launched. The context that the kernel was loaded in must be current.
 */
static inline gemmir_result gemmir_launch(const gemmir_kernel *kernel, const gemmir_tensor *const *tensors,
                                          int overlap, CUstream stream) {
    const gemmir_spec *spec = kernel->spec;
    CUtensorMap maps[GEMMIR_MAX_MAPS];
    gemmir_scalar scalars[GEMMIR_MAX_PARAMS];
    void *params[GEMMIR_MAX_PARAMS];
    int num_maps = 0;
    int64_t m;
    GEMMIR_CHECK(gemmir_check(spec, tensors, &m));
    if (m == 0) return gemmir_ok();
    overlap = overlap && spec->waits;
    for (int i = 0; i < spec->num_params; ++i) {
        const gemmir_param_spec *param = &spec->params[i];
        const int number = param->tensor < 0 ? spec->num_inputs : param->tensor;
        if (param->kind == GEMMIR_TENSOR_MAP) {
            GEMMIR_CUDA(gemmir_encode(&maps[num_maps], spec, param, &spec->tensors[number], tensors[number]),
                        "cuTensorMapEncodeTiled");
            params[i] = &maps[num_maps++];
        } else {
            scalars[i] = gemmir_scalar_of(param, tensors[number], m, overlap);
            params[i] = &scalars[i];
        }
    }
    return gemmir_start(kernel, m, overlap, stream, params);
}

/* How many clusters run at once; a lone CTA has an SM to itself. */
static inline gemmir_result gemmir_count_clusters(gemmir_kernel *kernel, int sms) {
    const gemmir_spec *spec = kernel->spec;
    CUlaunchConfig config;
    int count = sms;
    memset(&config, 0, sizeof config);
    config.gridDimX = (unsigned)(spec->cluster_ctas * sms);
    config.blockDimX = spec->threads;
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = spec->shared_bytes;
    if (spec->cluster_ctas > 1)
        GEMMIR_CUDA(cuOccupancyMaxActiveClusters(&count, kernel->function, &config), "cuOccupancyMaxActiveClusters");
    if (count < 1) return gemmir_bad(GEMMIR_WRONG_DEVICE, -2, "no cluster of this kernel fits the device");
    kernel->clusters = count;
    return gemmir_ok();
}

static inline gemmir_result gemmir_prepare(gemmir_kernel *kernel, int sms) {
    const gemmir_spec *spec = kernel->spec;
    GEMMIR_CUDA(cuModuleGetFunction(&kernel->function, kernel->module, spec->entry), "cuModuleGetFunction");
    GEMMIR_CUDA(cuFuncSetAttribute(kernel->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                   (int)spec->shared_bytes),
                "cuFuncSetAttribute");
    GEMMIR_CUDA(cuFuncLoad(kernel->function), "cuFuncLoad"); /* now, not in a first launch: it may be captured */
    return gemmir_count_clusters(kernel, sms);
}

/*
 * Load `cubin`, the bytes of the bundle's machine code, into the current context. Never during graph capture.
 *
 * `kernel` is set only if all goes well; otherwise nothing stays loaded.
 */
static inline gemmir_result gemmir_load(gemmir_kernel *kernel, const gemmir_spec *spec, const void *cubin) {
    CUdevice device;
    gemmir_kernel made;
    gemmir_result result;
    int major, minor, shared, sms;
    GEMMIR_CUDA(cuCtxGetDevice(&device), "cuCtxGetDevice");
    GEMMIR_CUDA(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
                "cuDeviceGetAttribute");
    GEMMIR_CUDA(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
                "cuDeviceGetAttribute");
    GEMMIR_CUDA(cuDeviceGetAttribute(&shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device),
                "cuDeviceGetAttribute");
    GEMMIR_CUDA(cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device), "cuDeviceGetAttribute");
    if (major != spec->capability[0] || minor != spec->capability[1])
        return gemmir_bad(GEMMIR_WRONG_DEVICE, -2, "the device has another compute capability than the kernel");
    if ((unsigned)shared < spec->shared_bytes)
        return gemmir_bad(GEMMIR_WRONG_DEVICE, -2, "the device has less shared memory than the kernel needs");
    memset(&made, 0, sizeof made);
    made.spec = spec;
    GEMMIR_CUDA(cuModuleLoadData(&made.module, cubin), "cuModuleLoadData");
    result = gemmir_prepare(&made, sms);
    if (result.status != GEMMIR_OK) {
        (void)cuModuleUnload(made.module);
        return result;
    }
    *kernel = made;
    return result;
}

/* End the use of a kernel, in its context, once all its launches are done. */
static inline gemmir_result gemmir_unload(gemmir_kernel *kernel) {
    GEMMIR_CUDA(cuModuleUnload(kernel->module), "cuModuleUnload");
    memset(kernel, 0, sizeof *kernel);
    return gemmir_ok();
}

#endif /* GEMMIR_BUNDLE_LAUNCH_1 */
