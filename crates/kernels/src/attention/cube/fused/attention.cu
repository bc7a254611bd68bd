// Causal attention with scores in registers, on tensor cores (arXiv:2205.14135, arXiv:2307.08691).
//
// Compiled when it is first used, with HEAD (the width of a head: 64 or 128), BF16 (1 or 0: f16) and TILE (the
// rows of a tile: 64).
// Headers are not included, so that NVRTC needs no CUDA toolkit.
//
// A block owns a tile of rows, 16 a warp, and streams tiles of the other side past it:
// `forward` and `query_grads` own queries and stream keys and values; `key_grads` owns keys and values
// and streams the queries of all heads of their group, with everything transposed. Nothing is added
// up across blocks, so that the same input gives the same bits.
//
// Tiles lie in shared memory as rows of 16-byte chunks, chunk c of row r at c ^ (r & 7), so that `ldmatrix` meets
// no bank conflicts; for `wgmma` in blocks of 64 columns. Of an accumulator `x[n][4]`, a lane holds rows
// lane / 4 (the first two) and lane / 4 + 8 of its warp's 16, columns n * 8 + lane % 4 * 2 and the next.
//
// Products are the m16n8k16 of compute capability 8.0, a warp's each; on 9.0 (sm_90a) they are `wgmma`, of the
// block's four warps together, whose operands and accumulators have the same places.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA 1
#else
#define WGMMA 0
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16; // a 16-bit float, never looked into

#define THREADS (TILE / 16 * 32)
#define CHUNKS (HEAD / 8)
#define BLOCK_BYTES (TILE * 128) // 64 columns of a tile
#define TILE_BYTES (TILE * HEAD * 2)
#define LOG2E 1.4426950408889634f
#define INFINITY __int_as_float(0x7f800000)

struct Range {
    int first, end; // the keys that a query sees
};

__device__ __forceinline__ Range range_of(
    const int *spans, int span_rows, int window, int length, int keys, int query) {
    if (query >= length)
        return {0, 0};
    int own = query + keys - length + 1;
    int first = max(max(own - window, spans[query]), 0);
    int end = min(own, spans[span_rows * length + query]);
    return {first, max(first, end)};
}

__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Start of the tiles in dynamic shared memory: `wgmma` wants 1024 bytes.
__device__ __forceinline__ u32 tiles_in(const void *memory) {
    return (shared_address(memory) + 1023) & ~1023u;
}

__device__ __forceinline__ u32 place(u32 tile, int row, int chunk) {
#if WGMMA
    return tile + chunk / 8 * BLOCK_BYTES + row * 128 + (chunk % 8 ^ (row & 7)) * 16;
#else
    return tile + row * HEAD * 2 + (chunk ^ (row & 7)) * 16;
#endif
}

// Starts to copy 16 bytes, of which those from `bytes` on become zeros.
__device__ __forceinline__ void copy_chunk(u32 to, const u16 *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

// Starts to copy a tile, whose rows are `stride` apart; rows from `count` on become zeros.
__device__ __forceinline__ void load_tile(u32 tile, const u16 *from, size_t stride, int count) {
    // What differs from turn to turn is known when this is compiled.
    constexpr int ROWS = THREADS / CHUNKS, BYTES = WGMMA ? 128 : HEAD * 2;
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    u32 to = place(tile, row, chunk);
    const u16 *source = from + row * stride + chunk * 8;
    if (count >= TILE) {
#pragma unroll
        for (int i = 0; i < TILE / ROWS; i++)
            copy_chunk(to + i * ROWS * BYTES, source + i * ROWS * stride, 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        bool there = row + i * ROWS < count;
        copy_chunk(to + i * ROWS * BYTES, there ? source + i * ROWS * stride : from, there ? 16 : 0);
    }
}

// Waits for all copies of all threads, and for all threads.
__device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_all;");
#if WGMMA
    asm volatile("fence.proxy.async.shared::cta;");
#endif
    __syncthreads();
}

// 16 rows, 16 columns: a left factor.
__device__ __forceinline__ void load_left(u32 (&a)[4], u32 tile, int row, int column, int lane) {
    u32 from = place(tile, row + lane % 16, column / 8 + lane / 16);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(from));
}

// 16 rows, 16 columns, as two right factors whose columns are these rows.
__device__ __forceinline__ void load_rows(u32 (&b)[4], u32 tile, int row, int column, int lane) {
    u32 from = place(tile, row + lane / 16 * 8 + lane % 8, column / 8 + lane / 8 % 2);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from));
}

// 16 rows, 16 columns, as two right factors whose rows are these rows.
__device__ __forceinline__ void load_columns(u32 (&b)[4], u32 tile, int row, int column, int lane) {
    u32 from = place(tile, row + lane % 16, column / 8 + lane / 16);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from));
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

__device__ __forceinline__ float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// An accumulator as a left factor, rounded to 16 bits.
struct Factor {
    u32 a[TILE / 16][4];

    __device__ __forceinline__ explicit Factor(const float (&x)[TILE / 8][4]) {
#pragma unroll
        for (int k = 0; k < TILE / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[k][i] = pack(x[2 * k + i / 2][i % 2 * 2], x[2 * k + i / 2][i % 2 * 2 + 1]);
    }
};

// Keeps what uses these sums behind the products.
template <int N> __device__ __forceinline__ void settle(float (&x)[N][4]) {
#if WGMMA
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(x[n][0]), "+f"(x[n][1]), "+f"(x[n][2]), "+f"(x[n][3])::"memory");
#endif
}

#if WGMMA

// Place of a matrix for `wgmma`: blocks of 64 columns with their chunks exchanged as in `place`. The eight
// rows of a group are 1024 bytes.
__device__ __forceinline__ u64 matrix_at(u32 address) {
    return (u64)(address >> 4 & 0x3fff) | (u64)(BLOCK_BYTES >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

#if BF16
#define TYPES ".f32.bf16.bf16 "
#else
#define TYPES ".f32.f16.f16 "
#endif
#define OF(x) "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
#define OF8(x, n) OF(x[n]), OF(x[n + 1]), OF(x[n + 2]), OF(x[n + 3]), OF(x[n + 4]), OF(x[n + 5]), OF(x[n + 6]), OF(x[n + 7])
#define SUMS32                                                                                       \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
    "%26,%27,%28,%29,%30,%31"

// Products run beside what follows, until `end_products`.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void end_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// 64 rows of a tile as a left factor: a warp's 16 in registers.
struct Left {
    u32 a[HEAD / 16][4];

    __device__ __forceinline__ void load(u32 tile, int row, int lane) {
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++)
            load_left(a[k], tile, row, k * 16, lane);
    }
};

// 64 rows by all rows of `tile`: out = left · tileᵀ.
__device__ __forceinline__ void scores_of(float (&out)[TILE / 8][4], const Left &left, u32 tile) {
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        u32 at = k / 4 * BLOCK_BYTES + k % 4 * 32;
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %37, 0;"
                     "wgmma.mma_async.sync.aligned.m64n64k16" TYPES SUMS32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, 0; }"
                     : OF8(out, 0)
                     : "r"(left.a[k][0]), "r"(left.a[k][1]), "r"(left.a[k][2]), "r"(left.a[k][3]),
                       "l"(matrix_at(tile) + at / 16), "r"(k));
    }
}

// The same of a tile in shared memory.
__device__ __forceinline__ void scores_of(float (&out)[TILE / 8][4], u32 own, int, u32 tile, int) {
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        u32 at = k / 4 * BLOCK_BYTES + k % 4 * 32;
        asm volatile("{ .reg .pred add; setp.ne.b32 add, %34, 0;"
                     "wgmma.mma_async.sync.aligned.m64n64k16" TYPES SUMS32 "}, %32, %33, add, 1, 1, 0, 0; }"
                     : OF8(out, 0)
                     : "l"(matrix_at(own) + at / 16), "l"(matrix_at(tile) + at / 16), "r"(k));
    }
}

// sums += x · tile.
__device__ __forceinline__ void add_product(float (&sums)[HEAD / 8][4], const Factor &x, u32 tile, int) {
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        u64 rows = matrix_at(tile) + k * 16 * 128 / 16;
#if HEAD == 64
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16" TYPES SUMS32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                     : OF8(sums, 0)
                     : "r"(x.a[k][0]), "r"(x.a[k][1]), "r"(x.a[k][2]), "r"(x.a[k][3]), "l"(rows));
#else
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16" TYPES SUMS32
                     ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"
                     "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                     : OF8(sums, 0), OF8(sums, 8)
                     : "r"(x.a[k][0]), "r"(x.a[k][1]), "r"(x.a[k][2]), "r"(x.a[k][3]), "l"(rows));
#endif
    }
}

#else

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A warp's 16 rows of a tile as a left factor, in shared memory.
struct Left {
    u32 tile;
    int row, lane;

    __device__ __forceinline__ void load(u32 from, int first, int of) { tile = from, row = first, lane = of; }
};

// 16 rows of `own` by all rows of `tile`: out = own · tileᵀ.
__device__ __forceinline__ void scores_of(float (&out)[TILE / 8][4], u32 own, int row, u32 tile, int lane) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[n][i] = 0;
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        u32 a[4];
        load_left(a, own, row, k * 16, lane);
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            u32 b[4];
            load_rows(b, tile, n * 16, k * 16, lane);
            multiply(out[2 * n], a, b[0], b[1]);
            multiply(out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

__device__ __forceinline__ void scores_of(float (&out)[TILE / 8][4], const Left &left, u32 tile) {
    scores_of(out, left.tile, left.row, tile, left.lane);
}

// sums += x · tile.
__device__ __forceinline__ void add_product(float (&sums)[HEAD / 8][4], const Factor &x, u32 tile, int lane) {
#pragma unroll
    for (int k = 0; k < TILE / 16; k++)
#pragma unroll
        for (int n = 0; n < HEAD / 16; n++) {
            u32 b[4];
            load_columns(b, tile, k * 16, n * 16, lane);
            multiply(sums[2 * n], x.a[k], b[0], b[1]);
            multiply(sums[2 * n + 1], x.a[k], b[2], b[3]);
        }
}

__device__ __forceinline__ void begin_products() {}

__device__ __forceinline__ void end_products() {}

#endif

// Writes 16 rows of a block's tile, each half of them times a factor.
__device__ __forceinline__ void store(
    u16 *to, size_t stride, const float (&x)[HEAD / 8][4], int row, int count, int lane, float upper, float lower) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + half * 8;
        float factor = half ? lower : upper;
        if (r < count)
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++)
                *(u32 *)(to + r * stride + n * 8 + lane % 4 * 2) =
                    pack(x[n][half * 2] * factor, x[n][half * 2 + 1] * factor);
    }
}

// The smallest `low` and the largest `high` of a block's threads; nothing where no thread has any.
__device__ __forceinline__ Range reach(int low, int high) {
    __shared__ int ends[2];
    if (threadIdx.x == 0)
        ends[0] = 0x7fffffff, ends[1] = 0;
    __syncthreads();
    low = __reduce_min_sync(~0u, low), high = __reduce_max_sync(~0u, high);
    if (threadIdx.x % 32 == 0)
        atomicMin(&ends[0], low), atomicMax(&ends[1], high);
    __syncthreads();
    return {min(ends[0], ends[1]), ends[1]};
}

// The tiles with keys that these rows of queries see.
__device__ __forceinline__ Range tiles_of(const Range (&rows)[2]) {
    int low = 0x7fffffff, high = 0;
    for (int i = 0; i < 2; i++)
        if (rows[i].first < rows[i].end)
            low = min(low, rows[i].first), high = max(high, rows[i].end);
    Range keys = reach(low, high);
    return {keys.first / TILE, (keys.end + TILE - 1) / TILE};
}

// Scores of keys that a query does not see become minus infinity: `first` is the first key of the tile.
__device__ __forceinline__ void hide(float (&x)[TILE / 8][4], const Range (&seen)[2], int first, int lane) {
    bool whole = max(seen[0].first, seen[1].first) <= first && min(seen[0].end, seen[1].end) >= first + TILE;
    if (__all_sync(~0u, whole))
        return;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first + n * 8 + lane % 4 * 2 + i % 2;
            x[n][i] = key >= seen[i / 2].first && key < seen[i / 2].end ? x[n][i] : -INFINITY;
        }
}

// Strides of keys and values; the other tensors have no gaps. Queries, their gradients, those of keys and the
// log-sum-exp have a sequence a head; the output, its gradient, delta and the gradients of values have the heads of
// a token side by side, as the projections around the attention have them.
#define SIZES                                                                                      \
    int heads, int kv_heads, int length, int keys, long long k_batch, long long k_head, long long k_row, \
        long long v_batch, long long v_head, long long v_row, int span_rows, int window, float scale

extern "C" __global__ void __launch_bounds__(THREADS, WGMMA ? (HEAD == 64 ? 4 : 3) : 2) attention_forward(
    const u16 *q, const u16 *k, const u16 *v, const int *spans, u16 *out, float *lse, SIZES) {
    extern __shared__ __align__(128) unsigned char memory[];
    // Queries go to registers, or else stay in a tile of their own.
    u32 streams = tiles_in(memory), own = streams + (WGMMA ? 2 : 4) * TILE_BYTES;
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    // The longest rows first.
    int start = (gridDim.z - 1 - blockIdx.z) * TILE, head = blockIdx.x, batch = blockIdx.y;
    size_t rows = ((size_t)batch * heads + head) * length + start;
    int kv_head = head / (heads / kv_heads);
    k += batch * k_batch + kv_head * k_head, v += batch * v_batch + kv_head * v_head;
    out += (((size_t)batch * length + start) * heads + head) * HEAD;
    spans += batch % span_rows * length;
    Range seen[2];
    for (int i = 0; i < 2; i++)
        seen[i] = range_of(spans, span_rows, window, length, keys, start + row + lane / 4 + i * 8);
    Range tiles = tiles_of(seen);

    float sums[HEAD / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float log2_scale = scale * LOG2E;
    Left queries;
    load_tile(own, q + rows * HEAD, HEAD, length - start);
    for (int tile = tiles.first, stage = 0; tile <= tiles.end; tile++, stage ^= 1) {
        // The copies of a tile go on while the one before it is worked on.
        arrive();
        if (tile < tiles.end) {
            u32 to = streams + stage * 2 * TILE_BYTES;
            load_tile(to, k + tile * TILE * k_row, k_row, keys - tile * TILE);
            load_tile(to + TILE_BYTES, v + tile * TILE * v_row, v_row, keys - tile * TILE);
        }
        if (tile == tiles.first) {
            queries.load(own, row, lane);
            continue;
        }
        int first = (tile - 1) * TILE;
        u32 key_tile = streams + (stage ^ 1) * 2 * TILE_BYTES;
        float x[TILE / 8][4];
        begin_products();
        scores_of(x, queries, key_tile);
        end_products();
        settle(x);
        hide(x, seen, first, lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = largest[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                most = fmaxf(most, fmaxf(x[n][half * 2], x[n][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            // A row that has seen nothing yet.
            float base = most == -INFINITY ? 0 : most * log2_scale, sum = 0;
            float shrink = exp2_of(largest[half] * log2_scale - base);
            largest[half] = most;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    x[n][i] = exp2_of(x[n][i] * log2_scale - base);
                    sum += x[n][i];
                }
            total[half] = total[half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++)
                sums[n][half * 2] *= shrink, sums[n][half * 2 + 1] *= shrink;
        }
        Factor p(x);
        begin_products();
        add_product(sums, p, key_tile + TILE_BYTES, lane);
        end_products();
        settle(sums);
    }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        int r = row + lane / 4 + half * 8;
        factor[half] = sum > 0 ? 1 / sum : 0;
        if (lane % 4 == 0 && start + r < length)
            lse[rows + r] = sum > 0 ? largest[half] * scale + logf(sum) : 0;
    }
    store(out, (size_t)heads * HEAD, sums, row, length - start, lane, factor[0], factor[1]);
}

// From a score its probability, and from the gradient of that the one of the score, over the scale.
__device__ __forceinline__ void gradient(float &x, float &grad, float log2_scale, float log2_lse, float delta) {
    x = exp2_of(x * log2_scale - log2_lse);
    grad = x * (grad - delta);
}

extern "C" __global__ void __launch_bounds__(THREADS, WGMMA ? 3 : 2) attention_query_grads(
    const u16 *q, const u16 *k, const u16 *v, const u16 *out_grad, const float *lse, const float *delta,
    const int *spans, u16 *q_grad, SIZES) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 own = tiles_in(memory), key_tile = own + 2 * TILE_BYTES, value_tile = own + 3 * TILE_BYTES;
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    int start = (gridDim.z - 1 - blockIdx.z) * TILE, head = blockIdx.x, batch = blockIdx.y;
    size_t rows = ((size_t)batch * heads + head) * length + start;
    int kv_head = head / (heads / kv_heads);
    k += batch * k_batch + kv_head * k_head, v += batch * v_batch + kv_head * v_head;
    out_grad += (((size_t)batch * length + start) * heads + head) * HEAD;
    delta += (size_t)batch * length * heads + head;
    spans += batch % span_rows * length;
    Range seen[2];
    float row_lse[2], row_delta[2];
    for (int i = 0; i < 2; i++) {
        int query = start + row + lane / 4 + i * 8;
        seen[i] = range_of(spans, span_rows, window, length, keys, query);
        row_lse[i] = query < length ? lse[rows - start + query] * LOG2E : 0;
        row_delta[i] = query < length ? delta[(size_t)query * heads] : 0;
    }
    Range tiles = tiles_of(seen);

    float sums[HEAD / 8][4] = {};
    float log2_scale = scale * LOG2E;
    if (tiles.first < tiles.end) {
        load_tile(own, q + rows * HEAD, HEAD, length - start);
        load_tile(own + TILE_BYTES, out_grad, (size_t)heads * HEAD, length - start);
        load_tile(key_tile, k + tiles.first * TILE * k_row, k_row, keys - tiles.first * TILE);
        load_tile(value_tile, v + tiles.first * TILE * v_row, v_row, keys - tiles.first * TILE);
    }
    for (int tile = tiles.first; tile < tiles.end; tile++) {
        arrive();
        float x[TILE / 8][4], grad[TILE / 8][4];
        begin_products();
        scores_of(x, own, row, key_tile, lane);
        scores_of(grad, own + TILE_BYTES, row, value_tile, lane);
        end_products();
        settle(x);
        settle(grad);
        // Each of the two is copied as soon as the one before it is done with, while three blocks take turns.
        int next = tile + 1;
        __syncthreads();
        if (next < tiles.end)
            load_tile(value_tile, v + next * TILE * v_row, v_row, keys - next * TILE);
        hide(x, seen, tile * TILE, lane);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                gradient(x[n][i], grad[n][i], log2_scale, row_lse[i / 2], row_delta[i / 2]);
        Factor factor(grad);
        begin_products();
        add_product(sums, factor, key_tile, lane);
        end_products();
        settle(sums);
        __syncthreads();
        if (next < tiles.end)
            load_tile(key_tile, k + next * TILE * k_row, k_row, keys - next * TILE);
    }
    store(q_grad + rows * HEAD, HEAD, sums, row, length - start, lane, scale, scale);
}

// What the gradients of keys need of a query.
struct Query {
    float log2_lse, delta;
    Range seen;
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_key_grads(
    const u16 *q, const u16 *k, const u16 *v, const u16 *out_grad, const float *lse, const float *delta,
    const int *spans, u16 *k_grad, u16 *v_grad, SIZES) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 own = tiles_in(memory), streams = own + 2 * TILE_BYTES;
    Query(*columns)[TILE] = (Query(*)[TILE])(memory + (own - shared_address(memory)) + 6 * TILE_BYTES);
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    // The keys that most queries see first.
    int start = blockIdx.z * TILE, kv_head = blockIdx.x, batch = blockIdx.y;
    k += batch * k_batch + kv_head * k_head + start * k_row;
    v += batch * v_batch + kv_head * v_head + start * v_row;
    int groups = heads / kv_heads;

    spans += batch % span_rows * length;
    // The queries that see some of these keys lie between these.
    int low = 0x7fffffff, high = 0;
    for (int query = max(start - (keys - length), 0) + threadIdx.x; query < length; query += THREADS) {
        Range seen = range_of(spans, span_rows, window, length, keys, query);
        if (max(seen.first, start) < min(seen.end, start + TILE))
            low = min(low, query), high = max(high, query + 1);
    }
    Range reached = reach(low, high);
    int tile_count = (reached.end + TILE - 1) / TILE - reached.first / TILE;

    float k_sums[HEAD / 8][4] = {}, v_sums[HEAD / 8][4] = {};
    float log2_scale = scale * LOG2E;
    load_tile(own, k, k_row, keys - start);
    load_tile(own + TILE_BYTES, v, v_row, keys - start);
    // Heads of the group, and tiles of queries in each, one after the other.
    int turns = groups * tile_count, from = reached.first / TILE * TILE;
    int head = kv_head * groups;
    q += ((size_t)batch * heads + head) * length * HEAD, lse += ((size_t)batch * heads + head) * length;
    out_grad += ((size_t)batch * length * heads + head) * HEAD, delta += (size_t)batch * length * heads + head;
    for (int turn = 0, tile = 0; turn <= turns; turn++) {
        int stage = turn % 2;
        arrive();
        Query column;
        if (turn < turns) {
            u32 to = streams + stage * 2 * TILE_BYTES;
            load_tile(to, q + (size_t)from * HEAD, HEAD, length - from);
            load_tile(to + TILE_BYTES, out_grad + (size_t)from * heads * HEAD, (size_t)heads * HEAD, length - from);
            if (threadIdx.x < TILE) {
                int query = from + threadIdx.x;
                column.seen = range_of(spans, span_rows, window, length, keys, query);
                column.log2_lse = query < length ? lse[query] : 0;
                column.delta = query < length ? delta[(size_t)query * heads] : 0;
            }
            from += TILE;
            if (++tile == tile_count)
                // The next head.
                tile = 0, from -= tile_count * TILE, q += (size_t)length * HEAD, lse += length, out_grad += HEAD, delta++;
        }
        if (turn > 0) {
            u32 query_tile = streams + (stage ^ 1) * 2 * TILE_BYTES;
            const Query *column = columns[stage ^ 1];
            float x[TILE / 8][4], grad[TILE / 8][4];
            begin_products();
            scores_of(x, own, row, query_tile, lane);
            scores_of(grad, own + TILE_BYTES, row, query_tile + TILE_BYTES, lane);
            end_products();
            settle(x);
            settle(grad);
            Range a = column[lane].seen, b = column[lane + 32].seen;
            bool whole = __all_sync(~0u, max(a.first, b.first) <= start && min(a.end, b.end) >= start + TILE);
            if (!whole)
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int key = start + row + lane / 4 + i / 2 * 8;
                        Range seen = column[n * 8 + lane % 4 * 2 + i % 2].seen;
                        x[n][i] = key >= seen.first && key < seen.end ? x[n][i] : -INFINITY;
                    }
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Query &of = column[n * 8 + lane % 4 * 2 + i % 2];
                    gradient(x[n][i], grad[n][i], log2_scale, of.log2_lse, of.delta);
                }
            Factor p(x), factor(grad);
            begin_products();
            add_product(v_sums, p, query_tile + TILE_BYTES, lane);
            add_product(k_sums, factor, query_tile, lane);
            end_products();
            settle(v_sums);
            settle(k_sums);
        }
        if (turn < turns && threadIdx.x < TILE) {
            column.log2_lse *= LOG2E;
            columns[stage][threadIdx.x] = column;
        }
    }
    size_t rows = ((size_t)batch * kv_heads + kv_head) * keys + start;
    store(k_grad + rows * HEAD, HEAD, k_sums, row, keys - start, lane, scale, scale);
    v_grad += (((size_t)batch * keys + start) * kv_heads + kv_head) * HEAD;
    store(v_grad, (size_t)kv_heads * HEAD, v_sums, row, keys - start, lane, 1, 1);
}
