// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for 9 to 64 rows of x and up to three weights in 4 bits, which are not decoded to memory.
//
// A warp owns 16 outputs, a block 128 and a slice of the inputs: codes and rows of x come to shared memory in a ring of stages.
// Where there are several slices, their sums are added up in their order by a kernel of its own.
//
// Macros beside those of all: TILES (eights of rows), STAGES.

#define COLUMNS 128 // inputs of a stage
#define X_BYTES (TILES * 8 * BLOCK * 2) // of a block of inputs
#define CODE_BYTES (WARPS * 16 * COLUMNS / 2)
#define STAGE_BYTES (COLUMNS / BLOCK * X_BYTES + CODE_BYTES)
#define MOST_RANKS 128 // of h at once
#define HEAD_BYTES (256 * 32 * 4 + 1024)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA 1
#else
#define WGMMA 0
#endif

// Place of eight inputs of a row in a block: its chunks are exchanged as `wgmma` wants it for 128 bytes.
__device__ __forceinline__ u32 x_place(int row, int chunk) { return row * 128 + (chunk ^ (row & 7)) * 16; }

// Place of 32 codes of an output in a stage, so that eight outputs are read without bank conflicts.
__device__ __forceinline__ u32 code_place(int row, int chunk) { return row * (COLUMNS / 2) + (chunk ^ (row >> 1 & 3)) * 16; }

// The place of byte `part` of a word in a lane's table.
__device__ __forceinline__ u32 place_of(u32 word, int part) { return __byte_perm(word, 0, 0x4440 | part) << 7; }

#if WGMMA
#if HALF
#define TYPES ".f32.f16.f16 "
#else
#define TYPES ".f32.bf16.bf16 "
#endif
#define OF(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
#if TILES == 2
#define SHAPE "m64n16k16"
#define SUMS "{%0,%1,%2,%3,%4,%5,%6,%7},{%8,%9,%10,%11},%12"
#define ADD "%13"
#define ALL(x) OF(x[0]), OF(x[1])
#elif TILES == 4
#define SHAPE "m64n32k16"
#define SUMS "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15},{%16,%17,%18,%19},%20"
#define ADD "%21"
#define ALL(x) OF(x[0]), OF(x[1]), OF(x[2]), OF(x[3])
#elif TILES == 8
#define SHAPE "m64n64k16"
#define SUMS                                                                                         \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
    "%26,%27,%28,%29,%30,%31},{%32,%33,%34,%35},%36"
#define ADD "%37"
#define ALL(x) OF(x[0]), OF(x[1]), OF(x[2]), OF(x[3]), OF(x[4]), OF(x[5]), OF(x[6]), OF(x[7])
#endif
#endif

// Sums of a block's inputs: 16 outputs of the warp, decoded, times the rows at `x`.
__device__ __forceinline__ void multiply_block(float (&sums)[TILES][4], const u32 (&decoded)[4][4], u32 x, int lane) {
#if WGMMA
    u64 matrix = (u64)(x >> 4 & 0x3fff) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm volatile("{ .reg .pred add; setp.ne.b32 add, " ADD ", 0; wgmma.mma_async.sync.aligned." SHAPE TYPES SUMS ", add, 1, 1, 0; }"
                     : ALL(sums)
                     : "r"(decoded[i][0]), "r"(decoded[i][1]), "r"(decoded[i][2]), "r"(decoded[i][3]), "l"(matrix + i * 2), "r"(i));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("" : ALL(sums)::"memory");
#else
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        float odd[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++) sums[t][i] = 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 b[4];
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                         : "r"(x + x_place(t * 8 + lane % 8, half * 4 + lane / 8)));
            const u32(&one)[4] = decoded[2 * half], (&two)[4] = decoded[2 * half + 1];
            multiply(sums[t], one[0], one[1], one[2], one[3], b[0], b[1]);
            multiply(odd, two[0], two[1], two[2], two[3], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sums[t][i] += odd[i];
    }
#endif
}

// Scales of the blocks of an output in a stage.
struct Scales {
#if RULE == 0
    float2 values;
#else
    u32 codes;
    float outer;
#endif
};

__device__ __forceinline__ Scales load_scales(const Weight &weight, size_t at) {
    Scales found;
#if RULE == 0
    found.values = __ldg((const float2 *)(weight.scales + at));
#else
    found.codes = __ldg((const u16 *)((const u8 *)weight.scales + at));
    found.outer = __uint_as_float(__ldg(weight.tables + OFFSET + 1 + at / NESTED));
#endif
    return found;
}

__device__ __forceinline__ float scale_of(const Scales &scales, int u, const float *map, float offset) {
#if RULE == 0
    return u == 0 ? scales.values.x : scales.values.y;
#else
    return map[scales.codes >> (8 * u) & 255] * scales.outer + offset;
#endif
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
many_rows(const __grid_constant__ Table table_of, int inputs, int ranks, int rows, int h_slices) {
    extern __shared__ u8 memory_of[];
    u8 *memory = memory_of + (-(u32)__cvta_generic_to_shared(memory_of) & 1023);
    u32 *table = (u32 *)memory;
    float *map = (float *)(table + 256 * 32);
    u8 *stages = memory + HEAD_BYTES;
    u32 stages_at = (u32)__cvta_generic_to_shared(stages);
    begin_next();
    const unsigned long long *words = table_of.words;
    const u16 *x = (const u16 *)words[4 * COUNT];
    const float *h = (const float *)words[4 * COUNT + 1];
    Weight weights[COUNT];
    int tiles = read(weights, words);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = lane / 4, part = lane % 4;
    int slices = gridDim.y, all = inputs / COLUMNS;
    int begin = blockIdx.y * all / slices, chunks = (blockIdx.y + 1) * all / slices - begin;
    // What this thread copies: of two outputs, and of rows of x.
    const u8 *codes[2];
    u32 code_at[2];
    bool has_codes[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = threadIdx.x / 4 + 64 * i, piece = threadIdx.x % 4, tile = blockIdx.x * WARPS + row / 16;
        has_codes[i] = tile < tiles;
        tile = has_codes[i] ? tile : 0;
        int found = weight_of(weights, tile);
        codes[i] = 0;
#pragma unroll
        for (int w = 0; w < COUNT; w++)
            if (w == found) codes[i] = (const u8 *)weights[w].codes + (size_t)((tile - weights[w].first_tile) * 16 + row % 16) * (inputs / 2);
        codes[i] += piece * 16 + begin * (COLUMNS / 2);
        code_at[i] = COLUMNS / BLOCK * X_BYTES + code_place(row, piece);
    }
    int x_row = threadIdx.x / 16, x_piece = threadIdx.x % 16;
    const u16 *from_x = x + (size_t)x_row * inputs + begin * COLUMNS + x_piece * 8;
    auto fetch = [&](int chunk) {
        u32 to = stages_at + chunk % STAGES * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < 2; i++) copy(to + code_at[i], codes[i] + chunk * (COLUMNS / 2), has_codes[i]);
#pragma unroll
        for (int i = 0; i < (TILES + 1) / 2; i++) {
            int row = x_row + 16 * i;
            if (row >= TILES * 8) break;
            const u16 *from = row < rows ? from_x + (size_t)16 * i * inputs + chunk * COLUMNS : x;
            copy(to + x_piece / 8 * X_BYTES + x_place(row, x_piece % 8), from, row < rows);
        }
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < chunks) fetch(i);
        asm volatile("cp.async.commit_group;");
    }
    write_tables(table, map, weights[0].tables);
    int tile = blockIdx.x * WARPS + warp;
    bool mine = tile < tiles;
    int found = weight_of(weights, mine ? tile : 0);
    Weight weight = weights[0];
#pragma unroll
    for (int w = 1; w < COUNT; w++)
        if (found == w) weight = weights[w];
    int first = mine ? (tile - weight.first_tile) * 16 : 0;
    float offset = 0;
#if RULE == 1
    offset = __uint_as_float(__ldg(weight.tables + OFFSET));
#endif
    size_t at[2] = {((size_t)(first + output) * inputs) / BLOCK + begin * (COLUMNS / BLOCK),
                    ((size_t)(first + output + 8) * inputs) / BLOCK + begin * (COLUMNS / BLOCK)};
    Scales next[2] = {load_scales(weight, at[0]), load_scales(weight, at[1])};
    const char *of_lane = (const char *)table + lane * 4;
    float total[TILES][4] = {};
    for (int chunk = 0; chunk < chunks; chunk++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
#if WGMMA
        asm volatile("fence.proxy.async;" ::: "memory");
#endif
        __syncthreads();
        if (chunk + STAGES - 1 < chunks) fetch(chunk + STAGES - 1);
        asm volatile("cp.async.commit_group;");
        Scales now[2] = {next[0], next[1]};
        if (chunk + 1 < chunks) {
            next[0] = load_scales(weight, at[0] + (chunk + 1) * (COLUMNS / BLOCK));
            next[1] = load_scales(weight, at[1] + (chunk + 1) * (COLUMNS / BLOCK));
        }
        int stage = chunk % STAGES * STAGE_BYTES;
#pragma unroll
        for (int u = 0; u < COLUMNS / BLOCK; u++) {
            // Of the products' inputs a lane has two pairs, which are bytes `part` and `part + 4` of the codes.
            u32 decoded[4][4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 at = COLUMNS / BLOCK * X_BYTES + code_place(warp * 16 + output + 8 * half, 2 * u + i);
                    uint4 words = *(const uint4 *)(stages + stage + at);
                    decoded[2 * i][half] = *(const u32 *)(of_lane + place_of(words.x, part));
                    decoded[2 * i][2 + half] = *(const u32 *)(of_lane + place_of(words.y, part));
                    decoded[2 * i + 1][half] = *(const u32 *)(of_lane + place_of(words.z, part));
                    decoded[2 * i + 1][2 + half] = *(const u32 *)(of_lane + place_of(words.w, part));
                }
            }
            float sums[TILES][4];
            multiply_block(sums, decoded, stages_at + stage + u * X_BYTES, lane);
            float sa = scale_of(now[0], u, map, offset), sb = scale_of(now[1], u, map, offset);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                total[t][0] += sa * sums[t][0], total[t][1] += sa * sums[t][1];
                total[t][2] += sb * sums[t][2], total[t][3] += sb * sums[t][3];
            }
        }
    }
    // Up to here nothing depends on the kernel before this one, whose h the updates are of: its ranks of this block's weights come
    // to where the stages were, a row in what is no multiple of 128 bytes.
    await_before();
    if (blockIdx.y == 0) {
        int last = weight_of(weights, min((int)(blockIdx.x + 1) * WARPS, tiles) - 1), from = 0, to = 0;
        int one = weight_of(weights, blockIdx.x * WARPS);
#pragma unroll
        for (int w = 0; w < COUNT; w++) {
            if (w == one) from = weights[w].first_rank;
            if (w == last) to = weights[w].first_rank + padded(weights[w].rank);
        }
        int stride = MOST_RANKS + 8, width = min(to - from, MOST_RANKS);
        u16 *held = (u16 *)stages;
        const u16 *of_b = weight.b + (size_t)(first + output) * weight.rank;
        // (A block of weights with more ranks reads them in turns.)
        for (int begin = from; begin < to; begin += MOST_RANKS) {
            __syncthreads();
            int pairs = min(width, to - begin) / 2;
            for (int i = threadIdx.x; i < TILES * 8 * pairs; i += WARPS * 32) {
                int row = i / pairs, column = i % pairs * 2;
                u32 both = row < rows ? load_h(h, row * ranks + begin + column, rows * ranks, h_slices) : 0;
                *(u32 *)(held + row * stride + column) = both;
            }
            __syncthreads();
            for (int k = max(0, begin - weight.first_rank); k < min(weight.rank, begin + MOST_RANKS - weight.first_rank); k += 16) {
                u32 b[4];
                load_b(b, of_b, weight.rank, k, part);
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    const u32 *of_h = (const u32 *)(held + (t * 8 + output) * stride + weight.first_rank + k - begin) + part;
                    float update[4] = {};
                    multiply(update, b[0], b[1], b[2], b[3], of_h[0], of_h[4]);
#pragma unroll
                    for (int i = 0; i < 4; i++) total[t][i] += weight.factor * update[i];
                }
            }
        }
    }
    if (slices > 1) {
        if (!mine) return;
        float *sums = (float *)weight.y;
        int width = tiles * 16;
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = t * 8 + 2 * part + i % 2;
                if (row < rows) sums[((size_t)blockIdx.y * rows + row) * width + tile * 16 + output + i / 2 * 8] = total[t][i];
            }
        }
        return;
    }
    __syncthreads();
    // Through shared memory, for stores of 16 bytes.
    u16 *turned = (u16 *)stages + warp * TILES * 8 * 16;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int i = 0; i < 4; i++) turned[(t * 8 + 2 * part + i % 2) * 16 + output + i / 2 * 8] = pair(total[t][i], 0) & 0xffff;
    }
    __syncwarp();
    for (int i = lane; mine && i < rows * 2; i += 32)
        *(uint4 *)((u16 *)weight.y + (size_t)(i / 2) * weight.outputs + first + i % 2 * 8) = *(uint4 *)(turned + i * 8);
}

// Adds up the sums of slices: `[slices, rows, outputs]` of all weights side by side. Four outputs a thread, a row a block of
// the second axis. The table has the sums, the outputs' buffers and their numbers.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
many_sums(const __grid_constant__ Table table_of, int slices, int rows, int width) {
    await_before();
    const unsigned long long *words = table_of.words;
    int at = (blockIdx.x * WARPS * 32 + threadIdx.x) * 4, row = blockIdx.y;
    if (at >= width) return;
    float4 sum = {};
    for (int slice = 0; slice < slices; slice++) {
        float4 one = *(const float4 *)((const float *)words[0] + ((size_t)slice * rows + row) * width + at);
        sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        int outputs = (int)words[1 + COUNT + w];
        if (at >= 0 && at < outputs) *(uint2 *)((u16 *)words[1 + w] + (size_t)row * outputs + at) = {pair(sum.x, sum.y), pair(sum.z, sum.w)};
        at -= outputs;
    }
}
