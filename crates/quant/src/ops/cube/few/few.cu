// `x · Wᵀ + scale · h · Bᵀ` for 1 to 8 rows of x and a weight in 4 bits, at the rate of memory: codes are decoded by a table
// in shared memory and multiplied on tensor cores, whose eight columns are the rows of x.
//
// A warp owns 16 outputs and a slice of the inputs. 64 weights of an output, which share a scale, lie in 32 bytes: four lanes
// take 8 bytes each, so that each product m16n8k16 has weights of one scale, which is applied to its sums in float32. The
// inputs are permuted in the same way in both factors: lane c of an output holds 16 c .. 16 c + 15 of a block. A byte is two
// codes; a table of 256 pairs, a copy for each lane, is read without bank conflicts. The warps of a block add up in a fixed
// order. Blocks go on with the next outputs, and load their weights while they multiply.
//
// Macros: HALF (float16, or else bfloat16), ROWS, RULE (0: scales are float32, 1: codes, with an outer float32 for NESTED of
// them), NESTED, OFFSET (of the tables, where outer float32s begin), UPDATE (with h and B).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARPS 8
#define BLOCK 64
#define UNROLL 4 // blocks of an output that are loaded together

__device__ __forceinline__ u32 pair(float low, float high) {
    u32 found;
#if HALF
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
#endif
    return found;
}

__device__ __forceinline__ float single(u16 bits) {
    float found;
#if HALF
    asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(bits));
#else
    found = __uint_as_float((u32)bits << 16);
#endif
    return found;
}

__device__ __forceinline__ void multiply(float (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if HALF
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A byte from bit `shift` on, times 128: the place of its pair in a lane's table.
__device__ __forceinline__ u32 place(u32 word, int shift) {
    return (shift < 7 ? word << (7 - shift) : word >> (shift - 7)) & 0x7f80;
}

__device__ __forceinline__ uint2 stream(const uint2 *from) {
    uint2 found;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(found.x), "=r"(found.y) : "l"(from));
    return found;
}

// Scales of the blocks of an output that are loaded together.
struct Scales {
#if RULE == 0
    float4 values;
#else
    u32 codes;
    float outer;
#endif
};

struct Weights {
    uint2 codes[2][UNROLL];
    Scales scales[2];
};

// The weights of the outputs `output` and `output + 8` from a column on.
__device__ __forceinline__ void load(Weights &weights, const u32 *codes, const u32 *scales, const u32 *tables, int output, int inputs,
                                     int column, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        size_t at = (size_t)(output + 8 * half) * inputs + column;
        const uint2 *from = (const uint2 *)codes + at / 16 + lane;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) weights.codes[half][u] = stream(from + u * 4);
#if RULE == 0
        weights.scales[half].values = __ldg((const float4 *)(scales + at / BLOCK));
#else
        weights.scales[half].codes = __ldg(scales + at / BLOCK / 4);
        weights.scales[half].outer = __uint_as_float(__ldg(tables + OFFSET + 1 + at / BLOCK / NESTED));
#endif
    }
}

__device__ __forceinline__ float scale_of(const Scales &scales, int u, const float *map, float offset) {
#if RULE == 0
    return u == 0 ? scales.values.x : u == 1 ? scales.values.y : u == 2 ? scales.values.z : scales.values.w;
#else
    return map[scales.codes >> (8 * u) & 255] * scales.outer + offset;
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
few_rows(const u32 *__restrict__ codes, const u32 *__restrict__ scales, const u32 *__restrict__ tables, const u16 *__restrict__ x,
#if UPDATE
         const u16 *__restrict__ h, const u16 *__restrict__ b,
#endif
         u16 *__restrict__ y, int outputs, int inputs, int rank, float factor) {
    __shared__ u32 table[256 * 32];
    __shared__ float map[256];
    __shared__ float sums[WARPS][16][8];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = lane / 4, part = lane % 4;
    const char *mine = (const char *)table + lane * 4;
    int chunks = inputs / (BLOCK * UNROLL), tiles = outputs / 16;
    int tile = blockIdx.x;
    Weights next;
    if (warp < chunks) load(next, codes, scales, tables, tile * 16 + output, inputs, warp * BLOCK * UNROLL, part);
    for (int i = threadIdx.x; i < 256 * 32; i += WARPS * 32) {
        int byte = i / 32;
        table[i] = pair(__uint_as_float(tables[byte >> 4]), __uint_as_float(tables[byte & 15]));
    }
    float offset = 0;
#if RULE == 1
    for (int i = threadIdx.x; i < 256; i += WARPS * 32) map[i] = __uint_as_float(tables[16 + i]);
    offset = __uint_as_float(tables[OFFSET]);
#endif
    __syncthreads();
    for (; tile < tiles; tile += gridDim.x) {
        float total[4] = {};
        for (int chunk = warp; chunk < chunks; chunk += WARPS) {
            Weights now = next;
            int then = chunk + WARPS, there = tile;
            if (then >= chunks) then = warp, there += gridDim.x;
            if (there < tiles) load(next, codes, scales, tables, there * 16 + output, inputs, then * BLOCK * UNROLL, part);
            int column = chunk * BLOCK * UNROLL + part * 16;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                uint4 first = {}, second = {};
                if (ROWS == 8 || output < ROWS) {
                    const uint4 *from = (const uint4 *)(x + (size_t)output * inputs + column + u * BLOCK);
                    first = __ldg(from), second = __ldg(from + 1);
                }
                u32 xs[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
                u32 wa[2] = {now.codes[0][u].x, now.codes[0][u].y}, wb[2] = {now.codes[1][u].x, now.codes[1][u].y};
                float even[4] = {}, odd[4] = {};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int shift = i % 2 * 16;
                    auto decode = [&](u32 word, int shift) { return *(const u32 *)(mine + place(word, shift)); };
                    u32 va = wa[i / 2], vb = wb[i / 2];
                    multiply(i % 2 ? odd : even, decode(va, shift), decode(vb, shift), decode(va, shift + 8), decode(vb, shift + 8),
                             xs[2 * i], xs[2 * i + 1]);
                }
                float sa = scale_of(now.scales[0], u, map, offset), sb = scale_of(now.scales[1], u, map, offset);
                total[0] += sa * (even[0] + odd[0]), total[1] += sa * (even[1] + odd[1]);
                total[2] += sb * (even[2] + odd[2]), total[3] += sb * (even[3] + odd[3]);
            }
        }
        sums[warp][output][2 * part] = total[0], sums[warp][output][2 * part + 1] = total[1];
        sums[warp][output + 8][2 * part] = total[2], sums[warp][output + 8][2 * part + 1] = total[3];
        __syncthreads();
        for (int at = threadIdx.x; at < 16 * ROWS; at += WARPS * 32) {
            int row = at / 16, which = at % 16;
            float sum = 0;
            for (int other = 0; other < WARPS; other++) sum += sums[other][which][row];
#if UPDATE
            const u16 *of_b = b + (size_t)(tile * 16 + which) * rank, *of_h = h + (size_t)row * rank;
            float update = 0;
            for (int k = 0; k < rank; k++) update += single(__ldg(of_h + k)) * single(__ldg(of_b + k));
            sum += factor * update;
#endif
            y[(size_t)row * outputs + tile * 16 + which] = pair(sum, 0) & 0xffff;
        }
        __syncthreads();
    }
}
