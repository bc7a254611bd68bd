// A 4-bit weight [rows, width], both multiples of 16, to E4M3 with one scale.
//
// Compiled when it is first used, with BLOCK (elements that share a scale), RULE of the scales (0: float32,
// 1: codes, an outer float32 for NESTED blocks, 2: codes, one outer float32) and OFFSET, its place in the
// tables; `layout.rs` describes codes, scales and tables. Headers are not included, so that NVRTC needs no
// CUDA toolkit.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define THREADS 256
#define TILE_ROWS 128
#define TILE_WORDS 8 // 64 columns

__device__ __forceinline__ float scale_of(const u32 *scales, const float *tables, u32 block) {
#if RULE == 0
    return __uint_as_float(scales[block]);
#else
    const u32 code = scales[block / 4] >> (block % 4 * 8) & 255;
    const float outer = tables[OFFSET + 1 + (RULE == 1 ? block / NESTED : 0)];
    // Not fused, as everywhere.
    return __fadd_rn(__fmul_rn(tables[16 + code], outer), tables[OFFSET]);
#endif
}

// E4M3 of two values, the first in the low byte.
__device__ __forceinline__ u32 pair(float first, float second) {
    u16 out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(second), "f"(first));
    return out;
}

__device__ __forceinline__ float value(const float *codebook, u32 word, int i) {
    return codebook[word >> ((i ^ 1) * 4) & 15];
}

__device__ __forceinline__ void load_codebook(float *codebook, const float *tables) {
    if (threadIdx.x < 16)
        codebook[threadIdx.x] = tables[threadIdx.x];
    __syncthreads();
}

// [rows, width], and the scale of each row.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode(const u32 *codes, const u32 *scales, const float *tables, u64 *out, float *row_scales,
           int rows, int words, int scale_at) {
    __shared__ float codebook[16];
    load_codebook(codebook, tables);
    const float scale = tables[scale_at], inverse = 1.0f / scale; // a power of two
    const u32 first = blockIdx.x * THREADS + threadIdx.x, step = gridDim.x * THREADS;
    for (u32 row = first; row < rows; row += step)
        row_scales[row] = scale;
    for (u32 at = first; at < words; at += step) {
        const u32 word = codes[at];
        const float factor = scale_of(scales, tables, at / (BLOCK / 8));
        u32 half[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                v[i] = value(codebook, word, 4 * h + i) * factor * inverse;
            half[h] = pair(v[0], v[1]) | pair(v[2], v[3]) << 16;
        }
        out[at] = (u64)half[1] << 32 | half[0];
    }
}

// [width, rows], and the scale of each of its rows: a block transposes a tile.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_transposed(const u32 *codes, const u32 *scales, const float *tables, u32 *out,
                      float *row_scales, int rows, int width, int scale_at) {
    __shared__ float codebook[16];
    __shared__ u32 tile[TILE_WORDS * 8][TILE_ROWS / 4 + 1];
    load_codebook(codebook, tables);
    const float scale = tables[scale_at], inverse = 1.0f / scale;
    const int column = blockIdx.x * TILE_WORDS + threadIdx.x % TILE_WORDS; // in words
    const int group = threadIdx.x / TILE_WORDS;                            // of four rows
    const int row = blockIdx.y * TILE_ROWS + group * 4;
    if (column < width / 8 && row < rows) {
        u32 word[4];
        float factor[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const u32 at = (u32)(row + r) * (width / 8) + column;
            word[r] = codes[at];
            factor[r] = scale_of(scales, tables, at / (BLOCK / 8));
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float v[4];
#pragma unroll
            for (int r = 0; r < 4; ++r)
                v[r] = value(codebook, word[r], i) * factor[r] * inverse;
            tile[threadIdx.x % TILE_WORDS * 8 + i][group] =
                pair(v[0], v[1]) | pair(v[2], v[3]) << 16;
        }
    }
    __syncthreads();
    const int lane = threadIdx.x % 32, to = blockIdx.y * TILE_ROWS / 4 + lane; // in words
    for (int line = threadIdx.x / 32; line < TILE_WORDS * 8; line += THREADS / 32) {
        const int at = blockIdx.x * TILE_WORDS * 8 + line;
        if (at >= width)
            break;
        if (to < rows / 4)
            out[(size_t)at * (rows / 4) + to] = tile[line][lane];
        if (blockIdx.y == 0 && lane == 0)
            row_scales[at] = scale;
    }
}
