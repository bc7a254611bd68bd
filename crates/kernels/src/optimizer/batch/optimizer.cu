// Updates of many vectors in one launch, and the sum of their squares. The macros WORDS, THREADS and CHUNK (the
// values of a vector that a block takes at a time) are set by the caller; the arithmetic is that of the CubeCL
// kernels beside this folder.

// Addresses of buffers, by kind: the first one of each vector, then the second one of each, and so on; then
// the lengths of the vectors.
struct Table {
    unsigned long long word[WORDS];
};

typedef long long Long;

// The part of a vector that a block takes.
struct Place {
    int vector;  // -1: there is none
    Long first, end, length;
};

__device__ Place place_of(const Table& table, int lengths, int vectors, Long chunk) {
    for (int vector = 0; vector < vectors; vector++) {
        Long length = (Long)table.word[lengths + vector];
        Long chunks = (length + CHUNK - 1) / CHUNK;
        if (chunk < chunks) {
            Long first = chunk * CHUNK;
            return {vector, first, min(first + CHUNK, length), length};
        }
        chunk -= chunks;
    }
    return {-1, 0, 0, 0};
}

template <typename T>
__device__ T* at(const Table& table, int word) {
    return reinterpret_cast<T*>(table.word[word]);
}

struct Step {
    float beta1, rest1, beta2, rest2, keep, size, root, eps;
};

#define STEP                                                                                              \
    float beta1, float rest1, float beta2, float rest2, float keep, float size, float root, float eps
#define STEP_VALUES {beta1, rest1, beta2, rest2, keep, size, root, eps}

__device__ void advance(const Step& step, float& param, float grad, float& m, float& v) {
    m = step.beta1 * m + step.rest1 * grad;
    v = step.beta2 * v + step.rest2 * grad * grad;
    param = step.keep * param - step.size * m / (step.root * sqrtf(v) + step.eps);
}

__device__ void advance(const Step& step, float4& param, float4 grad, float4& m, float4& v) {
    advance(step, param.x, grad.x, m.x, v.x);
    advance(step, param.y, grad.y, m.y, v.y);
    advance(step, param.z, grad.z, m.z, v.z);
    advance(step, param.w, grad.w, m.w, v.w);
}

__device__ float times(float a, float b) { return a * b; }
__device__ float4 times(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }

// Whether vectors of this length at these addresses can be taken as float4.
template <typename... Address>
__device__ bool is_wide(Long length, Address... address) {
    return (((length & 3) << 2) | ((reinterpret_cast<Long>(address) & 15) | ... | 0)) == 0;
}

template <typename T>
__device__ void adamw_part(const Step& step, const float* params, const float* grads, float factor,
                           float* new_params, float* ms, float* vs, Place place) {
    const int width = sizeof(T) / sizeof(float);
    const T* old = reinterpret_cast<const T*>(params);
    const T* given = reinterpret_cast<const T*>(grads);
    T* fresh = reinterpret_cast<T*>(new_params);
    T* firsts = reinterpret_cast<T*>(ms);
    T* seconds = reinterpret_cast<T*>(vs);
    for (Long i = place.first / width + threadIdx.x; i < place.end / width; i += THREADS) {
        T param = old[i], m = firsts[i], v = seconds[i];
        advance(step, param, times(given[i], factor), m, v);
        fresh[i] = param;
        firsts[i] = m;
        seconds[i] = v;
    }
}

// Of each vector: parameter, gradient; the factor; new parameter, m, v.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const __grid_constant__ Table table, int vectors, STEP) {
    const Step step = STEP_VALUES;
    Place place = place_of(table, 5 * vectors + 1, vectors, blockIdx.x);
    if (place.vector < 0) return;
    const float* params = at<const float>(table, place.vector);
    const float* grads = at<const float>(table, vectors + place.vector);
    const float factor = *at<const float>(table, 2 * vectors);
    float* new_params = at<float>(table, 2 * vectors + 1 + place.vector);
    float* ms = at<float>(table, 3 * vectors + 1 + place.vector);
    float* vs = at<float>(table, 4 * vectors + 1 + place.vector);
    if (is_wide(place.length, params, grads, new_params, ms, vs)) {
        adamw_part<float4>(step, params, grads, factor, new_params, ms, vs, place);
    } else {
        adamw_part<float>(step, params, grads, factor, new_params, ms, vs, place);
    }
}

// Entries of a map of 8-bit codes, values that share an absmax, values of a word.
#define ENTRIES 256
#define BLOCK 256
#define CODES 4

// The code of the nearest entry; of two equally near ones the lower.
__device__ unsigned nearest(const float* map, float value) {
    // The last entry below the value, or the first entry.
    int below = 0;
#pragma unroll
    for (int half = 128; half > 0; half /= 2) {
        if (map[below + half] < value) below += half;
    }
    int above = min(below + 1, ENTRIES - 1);
    float middle = (map[below] + map[above]) * 0.5f;
    return value > middle ? above : below;
}

__device__ unsigned encode(const float* values, float absmax, const float* map) {
    float scale = fmaxf(absmax, 1.17549435e-38f);
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < CODES; i++) word |= nearest(map, values[i] / scale) << (8 * i);
    return word;
}

// The largest value of the 64 threads of a block of values, which are two warps.
__device__ float block_max(float value, float* shared) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, distance));
    }
    int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) shared[warp] = value;
    __syncthreads();
    return fmaxf(shared[warp], shared[warp ^ 1]);
}

// Of each vector: parameter, gradient; the factor, both maps; new parameter, codes, absmax.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_coded(const __grid_constant__ Table table, int vectors, STEP) {
    __shared__ float maps[2 * ENTRIES];
    __shared__ float most[2][THREADS / 32];
    const Step step = STEP_VALUES;
    Place place = place_of(table, 5 * vectors + 2, vectors, blockIdx.x);
    if (place.vector < 0) return;
    const float* params = at<const float>(table, place.vector);
    const float* grads = at<const float>(table, vectors + place.vector);
    const float factor = *at<const float>(table, 2 * vectors);
    const float* both = at<const float>(table, 2 * vectors + 1);
    float* new_params = at<float>(table, 2 * vectors + 2 + place.vector);
    unsigned* codes = at<unsigned>(table, 3 * vectors + 2 + place.vector);
    float* absmax = at<float>(table, 4 * vectors + 2 + place.vector);
    for (int i = threadIdx.x; i < 2 * ENTRIES; i += THREADS) maps[i] = both[i];
    __syncthreads();

    const Long first = place.first + (Long)CODES * threadIdx.x;
    const Long words = (place.length + CODES - 1) / CODES, word = first / CODES;
    const Long blocks = (place.length + BLOCK - 1) / BLOCK, block = first / BLOCK;
    // Values past the end are zero, and are not written.
    float ms[CODES] = {}, vs[CODES] = {};
    float m_most = 0, v_most = 0;
    if (word < words) {
        const unsigned m_word = codes[word], v_word = codes[words + word];
        const float m_scale = absmax[block], v_scale = absmax[blocks + block];
#pragma unroll
        for (int i = 0; i < CODES; i++) {
            if (first + i < place.length) {
                float param = params[first + i];
                ms[i] = maps[(m_word >> (8 * i)) & 255] * m_scale;
                vs[i] = maps[ENTRIES + ((v_word >> (8 * i)) & 255)] * v_scale;
                advance(step, param, grads[first + i] * factor, ms[i], vs[i]);
                new_params[first + i] = param;
                m_most = fmaxf(m_most, fabsf(ms[i]));
                v_most = fmaxf(v_most, vs[i]);
            }
        }
    }
    m_most = block_max(m_most, most[0]);
    v_most = block_max(v_most, most[1]);
    // (All threads of a block of values have read its absmax: `block_max` waits for them.)
    if (word < words) {
        codes[word] = encode(ms, m_most, maps);
        codes[words + word] = encode(vs, v_most, maps + ENTRIES);
        if (first % BLOCK == 0) {
            absmax[block] = m_most;
            absmax[blocks + block] = v_most;
        }
    }
}

__device__ float square(float x) { return x * x; }
__device__ float square(float4 x) { return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; }

template <typename T>
__device__ float squares_of(const float* x, Place place) {
    const int width = sizeof(T) / sizeof(float);
    float sum = 0;
    for (Long i = place.first / width + threadIdx.x; i < place.end / width; i += THREADS) {
        sum += square(reinterpret_cast<const T*>(x)[i]);
    }
    return sum;
}

// Adds the squares to partial sums: block i to the i-th, always in the same order. Of each vector: its values;
// then the partial sums.
extern "C" __global__ void __launch_bounds__(THREADS)
    squares(const __grid_constant__ Table table, int vectors) {
    __shared__ float sums[THREADS];
    float sum = 0;
    for (Long chunk = blockIdx.x;; chunk += gridDim.x) {
        Place place = place_of(table, vectors + 1, vectors, chunk);
        if (place.vector < 0) break;
        const float* x = at<const float>(table, place.vector);
        sum += is_wide(place.length, x) ? squares_of<float4>(x, place) : squares_of<float>(x, place);
    }
    sums[threadIdx.x] = sum;
    for (int distance = THREADS / 2; distance > 0; distance /= 2) {
        __syncthreads();
        if (threadIdx.x < distance) sums[threadIdx.x] += sums[threadIdx.x + distance];
    }
    if (threadIdx.x == 0) at<float>(table, vectors)[blockIdx.x] += sums[0];
}
