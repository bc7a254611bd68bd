// What products of few rows with 4-bit weights share. A weight's codes are decoded by a table in shared memory and multiplied on
// tensor cores, whose eight columns are rows of x.
//
// 64 weights of an output, which share a scale, lie in 32 bytes: four lanes take 8 bytes each, so that each product m16n8k16 has
// weights of one scale, which is applied to its sums in float32. The inputs are permuted in the same way in both factors: lane
// c of an output holds 16 c .. 16 c + 15 of a block. A byte is two codes; a table of 256 pairs, a copy for each lane, is read
// without bank conflicts.
//
// Macros: HALF (float16, or else bfloat16), COUNT (of weights), RULE (0: scales are float32, 1: codes, with an outer float32
// for NESTED of them), NESTED, OFFSET (of the tables, where outer float32s begin), WORDS (of the table of parameters).

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARPS 8
#define BLOCK 64

__device__ __forceinline__ u32 pair(float low, float high) {
    u32 found;
#if HALF
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
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

// A thread for each byte writes its pair for all lanes, beginning at another place than its neighbours; and the map of scales.
__device__ __forceinline__ void write_tables(u32 *table, float *map, const u32 *tables) {
    u32 both = pair(__uint_as_float(__ldg(tables + threadIdx.x / 16)), __uint_as_float(__ldg(tables + threadIdx.x % 16)));
#pragma unroll
    for (int i = 0; i < 8; i++) *(uint4 *)&table[threadIdx.x * 32 + (i + threadIdx.x) % 8 * 4] = {both, both, both, both};
#if RULE == 1
    map[threadIdx.x] = __uint_as_float(__ldg(tables + 16 + threadIdx.x));
#endif
}

// Waits for the kernel before this one, which may be running still.
__device__ __forceinline__ void await_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel after this one begin.
__device__ __forceinline__ void begin_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Of each weight what there is, in this order; one without an update has a rank of 0.
struct Table {
    unsigned long long words[WORDS];
};

struct Weight {
    const u32 *codes, *scales, *tables;
    const u16 *b;
    void *y;
    int outputs, rank, first_rank, first_tile;
    float factor;
};

// Ranks with what fills up the last sixteen of an update.
__device__ __forceinline__ int padded(int rank) { return (rank + 15) / 16 * 16; }

// Reads the table; returns the number of tiles of 16 outputs.
__device__ __forceinline__ int read(Weight (&weights)[COUNT], const unsigned long long *words) {
    int tiles = 0, first_rank = 0;
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        Weight &weight = weights[w];
        weight.codes = (const u32 *)words[w], weight.scales = (const u32 *)words[COUNT + w];
        weight.tables = (const u32 *)words[2 * COUNT + w], weight.b = (const u16 *)words[3 * COUNT + w];
        weight.y = (void *)words[4 * COUNT + 2 + w];
        weight.outputs = (int)words[5 * COUNT + 2 + w], weight.rank = (int)words[6 * COUNT + 2 + w];
        weight.factor = __uint_as_float((u32)words[7 * COUNT + 2 + w]);
        weight.first_rank = first_rank, weight.first_tile = tiles;
        first_rank += padded(weight.rank), tiles += weight.outputs / 16;
    }
    return tiles;
}

// The weight of a tile.
__device__ __forceinline__ int weight_of(const Weight (&weights)[COUNT], int tile) {
    int found = 0;
#pragma unroll
    for (int w = 1; w < COUNT; w++) found += tile >= weights[w].first_tile;
    return found;
}

// Two neighbours of a row of B, 0 beyond its end.
__device__ __forceinline__ u32 two(const u16 *row, int at, int rank) {
    u32 low = at < rank ? __ldg(row + at) : 0, high = at + 1 < rank ? __ldg(row + at + 1) : 0;
    return low | high << 16;
}

// Sixteen columns of B, from `k` on, for a tile of outputs of which `row` is the lane's first.
__device__ __forceinline__ void load_b(u32 (&b)[4], const u16 *row, int rank, int k, int part) {
#pragma unroll
    for (int i = 0; i < 4; i++) b[i] = two(row + (size_t)(i % 2 * 8) * rank, k + i / 2 * 8 + part * 2, rank);
}

// `h = x · Aᵀ` of all updates side by side, each filled up to sixteens with 0, in float32, for each slice of the inputs:
// `[slices, rows, ranks]`. A block has sixteen ranks, eight rows and a slice. The table has the As, what is kept of each h (`[rows,
// rank]`: where it is 0, so is h), x, h, the ranks, and whether not all is kept.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
few_inputs(const __grid_constant__ Table table_of, int inputs, int ranks, int rows) {
    __shared__ float sums[WARPS][8][20];
    begin_next();
    const unsigned long long *words = table_of.words;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, output = lane / 4, part = lane % 4;
    const u16 *a = 0, *x = (const u16 *)words[2 * COUNT];
    const float *kept = 0; // of the block's first rank
    int first = blockIdx.x * 16, rank = 0, whole = 0;
#pragma unroll
    for (int w = 0; w < COUNT; w++) {
        int of = (int)words[2 * COUNT + 2 + w];
        if (first >= 0 && first < padded(of)) {
            a = (const u16 *)words[w] + (size_t)first * inputs, rank = of - first, whole = of;
            if (words[3 * COUNT + 2 + w]) kept = (const float *)words[COUNT + w] + first;
        }
        first -= padded(of);
    }
    int row = blockIdx.y * 8 + output, steps = inputs / 256, begin = blockIdx.z * steps / gridDim.z * 256;
    int end = (blockIdx.z + 1) * steps / gridDim.z * 256;
    bool has[3] = {output < rank, output + 8 < rank, row < rows};
    const u16 *from[3] = {a + (size_t)output * inputs, a + (size_t)(output + 8) * inputs, x + (size_t)row * inputs};
    float even[4] = {}, odd[4] = {};
#pragma unroll 8
    for (int column = begin + warp * 32 + part * 8; column < end; column += WARPS * 32) {
        uint4 of[3];
#pragma unroll
        for (int i = 0; i < 3; i++) of[i] = has[i] ? __ldg((const uint4 *)(from[i] + column)) : make_uint4(0, 0, 0, 0);
        multiply(even, of[0].x, of[1].x, of[0].y, of[1].y, of[2].x, of[2].y);
        multiply(odd, of[0].z, of[1].z, of[0].w, of[1].w, of[2].z, of[2].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][2 * part + i % 2][output + i / 2 * 8] = even[i] + odd[i];
    __syncthreads();
    int which = threadIdx.x % 16, of = threadIdx.x / 16, one = blockIdx.y * 8 + of;
    if (of < 8 && one < rows) {
        float sum = 0;
#pragma unroll
        for (int other = 0; other < WARPS; other++) sum += sums[other][of][which];
        if (kept && which < rank && kept[(size_t)one * whole + which] == 0) sum = 0;
        ((float *)words[2 * COUNT + 1])[((size_t)blockIdx.z * rows + one) * ranks + blockIdx.x * 16 + which] = sum;
    }
}

// Starts to copy 16 bytes to shared memory, or writes zeros there.
__device__ __forceinline__ void copy(u32 to, const void *from, bool there) {
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

// Two neighbours of h, whose slices are added up in their order: `at` is that of the first slice's, `all` a slice's length.
__device__ __forceinline__ u32 load_h(const float *h, size_t at, int all, int slices) {
    float2 sum = {};
    for (int slice = 0; slice < slices; slice++) {
        float2 one = *(const float2 *)(h + (size_t)slice * all + at);
        sum.x += one.x, sum.y += one.y;
    }
    return pair(sum.x, sum.y);
}
