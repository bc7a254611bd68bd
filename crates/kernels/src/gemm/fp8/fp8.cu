// Rows to E4M3, each with a scale of its own (arXiv:2209.05433), as `fp8.rs` of the quant crate defines it.
//
// Compiled when it is first used, with DTYPE: 0 (float32), 1 (bf16) or 2 (f16).
// Headers are not included, so that NVRTC needs no CUDA toolkit.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define THREADS 256
#define E4M3_MAX 448.0f
#define LEAST 1e-30f

__device__ __forceinline__ float wide(u16 value) {
#if DTYPE == 1
    return __uint_as_float((u32)value << 16);
#else
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value));
    return out;
#endif
}

// Eight values of a row.
__device__ __forceinline__ void load(const void *x, size_t at, float (&values)[8]) {
#if DTYPE == 0
    const float4 *from = (const float4 *)((const float *)x + at);
    const float4 low = from[0], high = from[1];
    const float all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
        values[i] = all[i];
#else
    const uint4 words = *(const uint4 *)((const u16 *)x + at);
    const u32 all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
        values[i] = wide((u16)(all[i / 2] >> (i % 2 * 16)));
#endif
}

// NaN if one of them is.
__device__ __forceinline__ float larger(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}

__device__ __forceinline__ u32 pair(float first, float second) {
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(second), "f"(first));
    return out;
}

// A block a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_rows(const void *x, unsigned char *codes, float *scales, int width) {
    __shared__ float maxima[THREADS / 32];
    const size_t row = (size_t)blockIdx.x * width;
    float most = 0.0f, values[8];
    for (int at = threadIdx.x * 8; at < width; at += THREADS * 8) {
        load(x, row + at, values);
#pragma unroll
        for (int i = 0; i < 8; ++i)
            most = larger(most, fabsf(values[i]));
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        most = larger(most, __shfl_xor_sync(0xffffffffu, most, lanes));
    if (threadIdx.x % 32 == 0)
        maxima[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp)
        most = larger(most, maxima[warp]);
    const float factor = most > LEAST ? __fdiv_rn(E4M3_MAX, most) : 0.0f;
    if (threadIdx.x == 0)
        scales[blockIdx.x] = __fdiv_rn(most, E4M3_MAX);
    for (int at = threadIdx.x * 8; at < width; at += THREADS * 8) {
        load(x, row + at, values);
        u32 words[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            words[i] = pair(values[4 * i] * factor, values[4 * i + 1] * factor) |
                       pair(values[4 * i + 2] * factor, values[4 * i + 3] * factor) << 16;
        *(u64 *)(codes + row + at) = (u64)words[1] << 32 | words[0];
    }
}
