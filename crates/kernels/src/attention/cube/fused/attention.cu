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
// Tiles lie in shared memory as rows of 16-byte chunks, chunk c of row r at c ^ (r & 7), so that
// `ldmatrix` meets no bank conflicts. Products are m16n8k16: of an accumulator `x[n][4]`, a lane holds
// rows lane / 4 (the first two) and lane / 4 + 8, columns n * 8 + lane % 4 * 2 and the next.

typedef unsigned int u32;
typedef unsigned short u16; // a 16-bit float, never looked into

#define THREADS (TILE / 16 * 32)
#define CHUNKS (HEAD / 8)
#define TILE_BYTES (TILE * HEAD * 2)
#define LOG2E 1.4426950408889634f
#define INFINITY __int_as_float(0x7f800000)

struct Range {
    int first, end; // the keys that a query sees
};

__device__ __forceinline__ Range range_of(
    const int *spans, int span_rows, int window, int length, int keys, int batch, int query) {
    if (query >= length)
        return {0, 0};
    int own = query + keys - length + 1, at = batch % span_rows * length + query;
    int first = max(max(own - window, spans[at]), 0);
    int end = min(own, spans[span_rows * length + at]);
    return {first, max(first, end)};
}

__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Starts to copy a tile; rows from `count` on become zeros.
__device__ __forceinline__ void load_tile(u32 tile, const u16 *from, int count) {
#pragma unroll
    for (int i = 0; i < TILE * CHUNKS / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        u32 to = tile + row * HEAD * 2 + (chunk ^ (row & 7)) * 16;
        const u16 *source = from + (size_t)(row < count ? row : 0) * HEAD + chunk * 8;
        int bytes = row < count ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes));
    }
}

// The same of two tensors, whose tiles lie one after the other.
__device__ __forceinline__ void load_pair(u32 tiles, const u16 *a, const u16 *b, size_t from, int count) {
    load_tile(tiles, a + from, count);
    load_tile(tiles + TILE_BYTES, b + from, count);
}

// Waits for all copies of all threads, and for all threads.
__device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_all;");
    __syncthreads();
}

__device__ __forceinline__ u32 place(u32 tile, int row, int chunk) {
    return tile + row * HEAD * 2 + (chunk ^ (row & 7)) * 16;
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

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

// sums += x · tile, with x rounded to 16 bits.
__device__ __forceinline__ void add_product(float (&sums)[HEAD / 8][4], const float (&x)[TILE / 8][4], u32 tile, int lane) {
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        const float(&l)[4] = x[2 * k], (&r)[4] = x[2 * k + 1];
        u32 a[4] = {pack(l[0], l[1]), pack(l[2], l[3]), pack(r[0], r[1]), pack(r[2], r[3])};
#pragma unroll
        for (int n = 0; n < HEAD / 16; n++) {
            u32 b[4];
            load_columns(b, tile, k * 16, n * 16, lane);
            multiply(sums[2 * n], a, b[0], b[1]);
            multiply(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// Writes 16 rows of a block's tile, each half of them times a factor.
__device__ __forceinline__ void store(
    u16 *to, const float (&x)[HEAD / 8][4], int row, int count, int lane, float upper, float lower) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + half * 8;
        float factor = half ? lower : upper;
        if (r < count)
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++)
                *(u32 *)(to + (size_t)r * HEAD + n * 8 + lane % 4 * 2) =
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

#define SIZES int heads, int kv_heads, int length, int keys, long long kv_stride, int span_rows, int window, float scale

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward(
    const u16 *q, const u16 *k, const u16 *v, const int *spans, u16 *out, float *lse, SIZES) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 own = shared_address(memory), streams = own + TILE_BYTES;
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    // The longest rows first.
    int start = (gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y, batch = blockIdx.z;
    size_t queries = ((size_t)batch * heads + head) * length + start;
    size_t matrix = (batch * kv_heads + head / (heads / kv_heads)) * kv_stride;
    Range seen[2];
    for (int i = 0; i < 2; i++)
        seen[i] = range_of(spans, span_rows, window, length, keys, batch, start + row + lane / 4 + i * 8);
    Range tiles = tiles_of(seen);

    float sums[HEAD / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float log2_scale = scale * LOG2E;
    load_tile(own, q + queries * HEAD, length - start);
    for (int tile = tiles.first, stage = 0; tile <= tiles.end; tile++, stage ^= 1) {
        // The copies of a tile go on while the one before it is worked on.
        arrive();
        if (tile < tiles.end) {
            size_t from = matrix + (size_t)tile * TILE * HEAD;
            load_pair(streams + stage * 2 * TILE_BYTES, k, v, from, keys - tile * TILE);
        }
        if (tile == tiles.first)
            continue;
        int first = (tile - 1) * TILE;
        u32 key_tile = streams + (stage ^ 1) * 2 * TILE_BYTES;
        float x[TILE / 8][4];
        scores_of(x, own, row, key_tile, lane);
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
        add_product(sums, x, key_tile + TILE_BYTES, lane);
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
            lse[queries + r] = sum > 0 ? largest[half] * scale + logf(sum) : 0;
    }
    store(out + queries * HEAD, sums, row, length - start, lane, factor[0], factor[1]);
}

// From a score its probability, and from the gradient of that the one of the score, over the scale.
__device__ __forceinline__ void gradient(float &x, float &grad, float log2_scale, float log2_lse, float delta) {
    x = exp2_of(x * log2_scale - log2_lse);
    grad = x * (grad - delta);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_query_grads(
    const u16 *q, const u16 *k, const u16 *v, const u16 *out_grad, const float *lse, const float *delta,
    const int *spans, u16 *q_grad, SIZES) {
    extern __shared__ __align__(128) unsigned char memory[];
    u32 own = shared_address(memory), streams = own + 2 * TILE_BYTES;
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    int start = (gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y, batch = blockIdx.z;
    size_t queries = ((size_t)batch * heads + head) * length + start;
    size_t matrix = (batch * kv_heads + head / (heads / kv_heads)) * kv_stride;
    Range seen[2];
    float row_lse[2], row_delta[2];
    for (int i = 0; i < 2; i++) {
        int query = start + row + lane / 4 + i * 8;
        seen[i] = range_of(spans, span_rows, window, length, keys, batch, query);
        row_lse[i] = query < length ? lse[queries - start + query] * LOG2E : 0;
        row_delta[i] = query < length ? delta[queries - start + query] : 0;
    }
    Range tiles = tiles_of(seen);

    float sums[HEAD / 8][4] = {};
    float log2_scale = scale * LOG2E;
    load_pair(own, q, out_grad, queries * HEAD, length - start);
    for (int tile = tiles.first, stage = 0; tile <= tiles.end; tile++, stage ^= 1) {
        arrive();
        if (tile < tiles.end) {
            size_t from = matrix + (size_t)tile * TILE * HEAD;
            load_pair(streams + stage * 2 * TILE_BYTES, k, v, from, keys - tile * TILE);
        }
        if (tile == tiles.first)
            continue;
        int first = (tile - 1) * TILE;
        u32 key_tile = streams + (stage ^ 1) * 2 * TILE_BYTES;
        float x[TILE / 8][4], grad[TILE / 8][4];
        scores_of(x, own, row, key_tile, lane);
        scores_of(grad, own + TILE_BYTES, row, key_tile + TILE_BYTES, lane);
        hide(x, seen, first, lane);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                gradient(x[n][i], grad[n][i], log2_scale, row_lse[i / 2], row_delta[i / 2]);
        add_product(sums, grad, key_tile, lane);
    }
    store(q_grad + queries * HEAD, sums, row, length - start, lane, scale, scale);
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
    u32 own = shared_address(memory), streams = own + 2 * TILE_BYTES;
    Query(*columns)[TILE] = (Query(*)[TILE])(memory + 6 * TILE_BYTES);
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    // The keys that most queries see first.
    int start = blockIdx.x * TILE, kv_head = blockIdx.y, batch = blockIdx.z;
    size_t matrix = (batch * kv_heads + kv_head) * kv_stride + (size_t)start * HEAD;
    int groups = heads / kv_heads;

    // The queries that see some of these keys lie between these.
    int low = 0x7fffffff, high = 0;
    for (int query = max(start - (keys - length), 0) + threadIdx.x; query < length; query += THREADS) {
        Range seen = range_of(spans, span_rows, window, length, keys, batch, query);
        if (max(seen.first, start) < min(seen.end, start + TILE))
            low = min(low, query), high = max(high, query + 1);
    }
    Range reached = reach(low, high);
    int tile_from = reached.first / TILE, tile_count = (reached.end + TILE - 1) / TILE - tile_from;

    float k_sums[HEAD / 8][4] = {}, v_sums[HEAD / 8][4] = {};
    float log2_scale = scale * LOG2E;
    load_pair(own, k, v, matrix, keys - start);
    for (int turn = 0; turn <= groups * tile_count; turn++) {
        int stage = turn % 2;
        arrive();
        Query column;
        if (turn < groups * tile_count) {
            int head = kv_head * groups + turn / tile_count, from = (tile_from + turn % tile_count) * TILE;
            size_t queries = ((size_t)batch * heads + head) * length;
            load_pair(streams + stage * 2 * TILE_BYTES, q, out_grad, (queries + from) * HEAD, length - from);
            if (threadIdx.x < TILE) {
                int query = from + threadIdx.x;
                column.seen = range_of(spans, span_rows, window, length, keys, batch, query);
                column.log2_lse = query < length ? lse[queries + query] * LOG2E : 0;
                column.delta = query < length ? delta[queries + query] : 0;
            }
        }
        if (turn > 0) {
            u32 query_tile = streams + (stage ^ 1) * 2 * TILE_BYTES;
            const Query *column = columns[stage ^ 1];
            float x[TILE / 8][4], grad[TILE / 8][4];
            scores_of(x, own, row, query_tile, lane);
            scores_of(grad, own + TILE_BYTES, row, query_tile + TILE_BYTES, lane);
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
            add_product(v_sums, x, query_tile + TILE_BYTES, lane);
            add_product(k_sums, grad, query_tile, lane);
        }
        if (turn < groups * tile_count && threadIdx.x < TILE)
            columns[stage][threadIdx.x] = column;
    }
    size_t rows = ((size_t)batch * kv_heads + kv_head) * keys + start;
    store(k_grad + rows * HEAD, k_sums, row, keys - start, lane, scale, scale);
    store(v_grad + rows * HEAD, v_sums, row, keys - start, lane, 1, 1);
}
