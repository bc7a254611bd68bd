// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for 1 to 8 rows of x and up to three weights, in 4 bits or in the 16 of x (RULE 2), at the
// rate of memory.
//
// A warp owns 16 outputs and a slice of the inputs. The warps of a block add up in a fixed order. Blocks go on with the next
// outputs, and load their weights while they multiply.

#if RULE == 2

#define CHUNK 128 // inputs of an output that are loaded together
#define STEP 32   // inputs of which a lane has eight

__device__ __forceinline__ uint4 stream(const uint4 *from) {
    uint4 found;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                 : "l"(from));
    return found;
}

struct Weights {
    uint4 values[2][CHUNK / STEP];
};

// The weights of the outputs `output` and `output + 8` from a column on.
__device__ __forceinline__ void load(Weights &weights, const Weight &weight, int output, int inputs, int column, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint4 *from = (const uint4 *)((const u16 *)weight.codes + (size_t)(output + 8 * half) * inputs + column) + lane;
#pragma unroll
        for (int u = 0; u < CHUNK / STEP; u++) weights.values[half][u] = stream(from + u * STEP / 8);
    }
}

// Adds the products with a row of x from a column on.
__device__ __forceinline__ void add(float (&total)[4], const Weights &weights, const u16 *x, bool there, int lane, const char *,
                                    const float *, float) {
    float odd[4] = {};
#pragma unroll
    for (int u = 0; u < CHUNK / STEP; u++) {
        uint4 of = there ? __ldg((const uint4 *)(x + u * STEP) + lane) : make_uint4(0, 0, 0, 0);
        uint4 a = weights.values[0][u], b = weights.values[1][u];
        multiply(total, a.x, b.x, a.y, b.y, of.x, of.y);
        multiply(odd, a.z, b.z, a.w, b.w, of.z, of.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) total[i] += odd[i];
}

#else

#define UNROLL 4 // blocks of an output that are loaded together
#define CHUNK (BLOCK * UNROLL)

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
__device__ __forceinline__ void load(Weights &weights, const Weight &weight, int output, int inputs, int column, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        size_t at = (size_t)(output + 8 * half) * inputs + column;
        const uint2 *from = (const uint2 *)weight.codes + at / 16 + lane;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) weights.codes[half][u] = stream(from + u * 4);
#if RULE == 0
        weights.scales[half].values = __ldg((const float4 *)(weight.scales + at / BLOCK));
#else
        weights.scales[half].codes = __ldg(weight.scales + at / BLOCK / 4);
        weights.scales[half].outer = __uint_as_float(__ldg(weight.tables + OFFSET + 1 + at / BLOCK / NESTED));
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

// Adds the products with a row of x from a column on; `table` is the lane's own, for its decoder.
__device__ __forceinline__ void add(float (&total)[4], const Weights &weights, const u16 *x, bool there, int lane, const char *table,
                                    const float *map, float offset) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        uint4 one = {}, two = {};
        if (there) {
            const uint4 *from = (const uint4 *)(x + u * BLOCK) + lane * 2;
            one = __ldg(from), two = __ldg(from + 1);
        }
        u32 xs[8] = {one.x, one.y, one.z, one.w, two.x, two.y, two.z, two.w};
        uint2 a = weights.codes[0][u], b = weights.codes[1][u];
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int shift = i % 2 * 16;
            auto decode = [&](uint2 words, int shift) { return *(const u32 *)(table + place(i < 2 ? words.x : words.y, shift)); };
            multiply(i % 2 ? odd : even, decode(a, shift), decode(b, shift), decode(a, shift + 8), decode(b, shift + 8), xs[2 * i],
                     xs[2 * i + 1]);
        }
        float sa = scale_of(weights.scales[0], u, map, offset), sb = scale_of(weights.scales[1], u, map, offset);
        total[0] += sa * (even[0] + odd[0]), total[1] += sa * (even[1] + odd[1]);
        total[2] += sb * (even[2] + odd[2]), total[3] += sb * (even[3] + odd[3]);
    }
}

#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
few_rows(const __grid_constant__ Table table_of, int inputs, int ranks, int rows, int slices) {
#if RULE != 2
    __shared__ __align__(16) u32 table[256 * 32];
    __shared__ float map[256];
#endif
    __shared__ float sums[2][WARPS][8][20];
    const unsigned long long *words = table_of.words;
    const u16 *x = (const u16 *)words[4 * COUNT];
    const float *h = (const float *)words[4 * COUNT + 1];
    Weight weights[COUNT];
    int tiles = read(weights, words);
    float offsets[COUNT] = {};
#if RULE == 1
#pragma unroll
    for (int w = 0; w < COUNT; w++) offsets[w] = __uint_as_float(__ldg(weights[w].tables + OFFSET));
#endif
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = lane / 4, part = lane % 4;
    int chunks = inputs / CHUNK, tile = blockIdx.x;
    auto load_tile = [&](Weights &into, int tile, int chunk) {
        int found = weight_of(weights, tile);
#pragma unroll
        for (int w = 0; w < COUNT; w++) {
            if (w != found) continue;
            int row = (tile - weights[w].first_tile) * 16 + output;
            load(into, weights[w], row, inputs, chunk * CHUNK, part);
        }
    };
    Weights next;
    if (warp < chunks) load_tile(next, tile, warp);
#if RULE == 2
    const char *mine = 0;
    const float *map = 0;
#else
    const char *mine = (const char *)table + lane * 4;
    write_tables(table, map, weights[0].tables);
    __syncthreads();
#endif
    int held = -1; // the weight of whose h the lane holds its first pairs
    u32 h0 = 0, h1 = 0;
    for (int turn = 0; tile < tiles; tile += gridDim.x, turn ^= 1) {
        int found = weight_of(weights, tile);
        Weight weight = weights[0];
        float offset = offsets[0];
#pragma unroll
        for (int w = 1; w < COUNT; w++)
            if (found == w) weight = weights[w], offset = offsets[w];
        int first = (tile - weight.first_tile) * 16;
        const u16 *of_b = weight.b + (size_t)(first + output) * weight.rank;
        u32 b[4];
        if (warp * 16 < weight.rank) load_b(b, of_b, weight.rank, warp * 16, part);
        float total[4] = {};
        for (int chunk = warp; chunk < chunks; chunk += WARPS) {
            Weights now = next;
            int then = chunk + WARPS, there = tile;
            if (then >= chunks) then = warp, there += gridDim.x;
            if (there < tiles) load_tile(next, there, then);
            add(total, now, x + (size_t)output * inputs + chunk * CHUNK, output < rows, part, mine, map, offset);
        }
        // Up to here nothing depends on the kernel before this one, whose h the updates are of.
        if (held < 0) await_before();
        float update[4] = {};
        for (int k = warp * 16; k < weight.rank; k += WARPS * 16) {
            bool first = k == warp * 16;
            if (!first) load_b(b, of_b, weight.rank, k, part);
            if (!first || held != found) {
                int at = output * ranks + weight.first_rank + k + part * 2;
                h0 = output < rows ? load_h(h, at, rows * ranks, slices) : 0;
                h1 = output < rows ? load_h(h, at + 8, rows * ranks, slices) : 0;
            }
            multiply(update, b[0], b[1], b[2], b[3], h0, h1);
        }
        // Those of a rank beyond what the warps take at once are read again.
        held = weight.rank > WARPS * 16 ? COUNT : found;
#pragma unroll
        for (int i = 0; i < 4; i++) sums[turn][warp][2 * part + i % 2][output + i / 2 * 8] = total[i] + weight.factor * update[i];
        // What is read here is written again after the next of these.
        __syncthreads();
        int row = threadIdx.x / 16, which = threadIdx.x % 16;
        if (row < rows) {
            float sum = 0;
#pragma unroll
            for (int other = 0; other < WARPS; other++) sum += sums[turn][other][row][which];
            ((u16 *)weight.y)[(size_t)row * weight.outputs + first + which] = pair(sum, 0) & 0xffff;
        }
    }
}
