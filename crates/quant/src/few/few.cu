// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for 1 to 8 rows of x and up to three weights in 4 bits, at the rate of memory: codes are
// decoded by a table in shared memory and multiplied on tensor cores, whose eight columns are the rows of x.
//
// A warp owns 16 outputs and a slice of the inputs. 64 weights of an output, which share a scale, lie in 32 bytes: four lanes
// take 8 bytes each, so that each product m16n8k16 has weights of one scale, which is applied to its sums in float32. The
// inputs are permuted in the same way in both factors: lane c of an output holds 16 c .. 16 c + 15 of a block. A byte is two
// codes; a table of 256 pairs, a copy for each lane, is read without bank conflicts. The warps of a block add up in a fixed
// order. Blocks go on with the next outputs, and load their weights while they multiply.
//
// Macros: HALF (float16, or else bfloat16), ROWS, COUNT (of weights), RULE (0: scales are float32, 1: codes, with an outer
// float32 for NESTED of them), NESTED, OFFSET (of the tables, where outer float32s begin), WORDS (of the table of parameters).

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

// Of each weight what there is, in this order; one without an update has a rank of 0.
struct Table {
    unsigned long long words[WORDS];
};

struct Weight {
    const u32 *codes, *scales, *tables;
    const u16 *b;
    u16 *y;
    int outputs, rank, first_rank, first_tile;
    float factor;
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
few_rows(const __grid_constant__ Table table_of, int inputs, int ranks) {
    __shared__ __align__(16) u32 table[256 * 32];
    __shared__ float map[256];
    __shared__ float sums[WARPS][16][8];
    const unsigned long long *words = table_of.words;
    const u16 *x = (const u16 *)words[4 * COUNT], *h = (const u16 *)words[4 * COUNT + 1];
    Weight weights[COUNT];
    float offsets[COUNT];
    int tiles = 0, first_rank = 0;
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        Weight &weight = weights[w];
        weight.codes = (const u32 *)words[w], weight.scales = (const u32 *)words[COUNT + w];
        weight.tables = (const u32 *)words[2 * COUNT + w], weight.b = (const u16 *)words[3 * COUNT + w];
        weight.y = (u16 *)words[4 * COUNT + 2 + w];
        weight.outputs = (int)words[5 * COUNT + 2 + w], weight.rank = (int)words[6 * COUNT + 2 + w];
        weight.factor = __uint_as_float((u32)words[7 * COUNT + 2 + w]);
        weight.first_rank = first_rank, weight.first_tile = tiles;
        first_rank += weight.rank, tiles += weight.outputs / 16;
        offsets[w] = 0;
#if RULE == 1
        offsets[w] = __uint_as_float(__ldg(weight.tables + OFFSET));
#endif
    }
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = lane / 4, part = lane % 4;
    const char *mine = (const char *)table + lane * 4;
    int chunks = inputs / (BLOCK * UNROLL), tile = blockIdx.x;
    auto which = [&](int tile) {
        int found = 0;
#pragma unroll
        for (int w = 1; w < COUNT; w++) found += tile >= weights[w].first_tile;
        return found;
    };
    auto load_tile = [&](Weights &into, int tile, int chunk) {
        int found = which(tile);
#pragma unroll
        for (int w = 0; w < COUNT; w++) {
            if (w != found) continue;
            int row = (tile - weights[w].first_tile) * 16 + output;
            load(into, weights[w].codes, weights[w].scales, weights[w].tables, row, inputs, chunk * BLOCK * UNROLL, part);
        }
    };
    Weights next;
    if (warp < chunks) load_tile(next, tile, warp);
    // A thread for each byte writes its pair for all lanes, beginning at another place than its neighbours.
    const u32 *tables = weights[0].tables;
    u32 both = pair(__uint_as_float(__ldg(tables + threadIdx.x / 16)), __uint_as_float(__ldg(tables + threadIdx.x % 16)));
#pragma unroll
    for (int i = 0; i < 8; i++) *(uint4 *)&table[threadIdx.x * 32 + (i + lane) % 8 * 4] = {both, both, both, both};
#if RULE == 1
    for (int i = threadIdx.x; i < 256; i += WARPS * 32) map[i] = __uint_as_float(tables[16 + i]);
#endif
    __syncthreads();
    // So far nothing depends on the kernel before this one, which may be running still.
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    for (; tile < tiles; tile += gridDim.x) {
        int found = which(tile);
        float offset = offsets[0];
#pragma unroll
        for (int w = 1; w < COUNT; w++) offset = found == w ? offsets[w] : offset;
        float total[4] = {};
        for (int chunk = warp; chunk < chunks; chunk += WARPS) {
            Weights now = next;
            int then = chunk + WARPS, there = tile;
            if (then >= chunks) then = warp, there += gridDim.x;
            if (there < tiles) load_tile(next, there, then);
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
#pragma unroll
        for (int w = 0; w < COUNT; w++) {
            if (w != found) continue;
            Weight weight = weights[w];
            // Sixteen threads an output: each adds up some warps' sums and some of the update.
            int which = threadIdx.x / 16, share = threadIdx.x % 16, one = (tile - weight.first_tile) * 16 + which;
            const u16 *of_b = weight.b + (size_t)one * weight.rank;
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                const u16 *of_h = h + (size_t)row * ranks + weight.first_rank;
                float update = 0;
                for (int k = share; k < weight.rank; k += 16) update += single(__ldg(of_h + k)) * single(__ldg(of_b + k));
                float sum = weight.factor * update + (share < WARPS ? sums[share][which][row] : 0);
#pragma unroll
                for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
                if (share == 0) weight.y[(size_t)row * weight.outputs + one] = pair(sum, 0) & 0xffff;
            }
        }
        __syncthreads();
    }
}

// `h = x · Aᵀ` of all updates side by side, a block for each row of an A: `[ROWS, ranks]`. The table has the As, x, h and the
// ranks.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
few_inputs(const __grid_constant__ Table table_of, int inputs, int ranks) {
    __shared__ float sums[WARPS][8];
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
    const unsigned long long *words = table_of.words;
    int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u16 *a = 0, *x = (const u16 *)words[COUNT];
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        int rank = (int)words[COUNT + 2 + w];
        if (row >= 0 && row < rank) a = (const u16 *)words[w] + (size_t)row * inputs;
        row -= rank;
    }
    float total[ROWS] = {};
    for (int column = threadIdx.x * 8; column < inputs; column += WARPS * 32 * 8) {
        uint4 packed = __ldg((const uint4 *)(a + column));
        const u16 *of_a = (const u16 *)&packed;
#pragma unroll
        for (int n = 0; n < ROWS; n++) {
            uint4 other = __ldg((const uint4 *)(x + (size_t)n * inputs + column));
            const u16 *of_x = (const u16 *)&other;
#pragma unroll
            for (int i = 0; i < 8; i++) total[n] += single(of_a[i]) * single(of_x[i]);
        }
    }
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) total[n] += __shfl_xor_sync(~0u, total[n], distance);
        if (lane == 0) sums[warp][n] = total[n];
    }
    __syncthreads();
    if (threadIdx.x < ROWS) {
        float sum = 0;
        for (int other = 0; other < WARPS; other++) sum += sums[other][threadIdx.x];
        ((u16 *)words[COUNT + 1])[(size_t)threadIdx.x * ranks + blockIdx.x] = pair(sum, 0) & 0xffff;
    }
}
