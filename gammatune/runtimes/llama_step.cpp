// One forward pass of a Llama over some tokens, on CPU threads: every weight is read once, at the speed of memory.
//
// Weights [out, in] lie in panels of PANEL rows, and in a panel line of 64 bytes by line: PANEL first lines, one of each row,
// then PANEL second ones. So a pass reads them front to back. Keys lie in tiles [kv heads, positions / TILE, size, TILE], so
// that the scores of TILE positions are sums of contiguous vectors; values as [kv heads, positions, size]. Weights, keys and
// values are of type T (float or bfloat16); what lies between products is summed in float.
//
// One or two tokens are multiplied by vector instructions; from TILES_FROM on, where a processor has them, by tile
// instructions (AMX), with which sixteen tokens cost about what one does. A step is a chain of phases with a barrier between;
// in each, a thread takes its share of the panels, or of the heads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <omp.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t LANES = 16, PANEL = 16, TILE = 32;  // floats in a vector; rows of a panel; positions of a tile of keys
constexpr int64_t MOST = 6;        // tokens at a time, so that their sums stay in vector registers
constexpr int64_t TILES_FROM = 3;  // tokens from which tile instructions are faster
using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
struct bfloat { uint16_t bits; };

Floats all(float value) { return Floats{} + value; }

Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

Floats load(const bfloat* from) {
    Halves h;
    std::memcpy(&h, from, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}

void store(float value, float* to) { *to = value; }

void store(float value, bfloat* to) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

void store(Floats v, float* to) { std::memcpy(to, &v, sizeof v); }

void store(Floats v, bfloat* to) {
    Words bits = (Words)v;
    Halves h = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    std::memcpy(to, &h, sizeof h);
}

// Weights come in the order in which they lie, so what is needed next is known
void fetch_ahead(const void* now) { __builtin_prefetch((const char*)now + 8192, 0, 2); }

float sum(Floats v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// exp for arguments up to 0: 2^whole * 2^rest, the rest in [-1/2, 1/2] by its series; relative error under 1e-7
Floats exponential(Floats x) {
    Floats y = x * 1.44269504f;
    y = y < -126.0f ? all(-126.0f) : y;
    Floats whole = (y + 12582912.0f) - 12582912.0f, r = y - whole;
    Floats p = all(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = p * r + c;
    using Ints = int32_t __attribute__((vector_size(64)));
    return p * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

Floats sigmoid(Floats x) {
    Floats e = exponential(x < 0.0f ? x : -x);  // of -|x|
    return (x < 0.0f ? e : all(1.0f)) / (1.0f + e);
}

template <class T>
constexpr int64_t LINE = 64 / sizeof(T);  // numbers in a cache line

// sums[r][t] = row r of the lines at w . x row t; lines of one row lie PANEL lines apart
template <int R, int N>
void multiply(const float* w, const float* x, int64_t in, float (*sums)[N]) {
    Floats acc[R][N] = {};
    for (int64_t k = 0; k < in; k += LANES, w += PANEL * LANES) {
        Floats b[N];
        for (int t = 0; t < N; t++) b[t] = load(x + t * in + k);
        for (int r = 0; r < R; r++) {
            Floats a = load(w + r * LANES);
            fetch_ahead(w + r * LANES);
            for (int t = 0; t < N; t++) acc[r][t] += a * b[t];
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < N; t++) sums[r][t] = sum(acc[r][t]);
}

template <int R, int N>
void multiply(const bfloat* w, const bfloat* x, int64_t in, float (*sums)[N]) {
    Floats acc[R][N] = {};
    for (int64_t k = 0; k < in; k += 2 * LANES, w += PANEL * 2 * LANES) {
#ifdef __AVX512BF16__
        __m512bh b[N];
        for (int t = 0; t < N; t++) b[t] = (__m512bh)_mm512_loadu_si512(x + t * in + k);
        for (int r = 0; r < R; r++) {
            __m512bh a = (__m512bh)_mm512_loadu_si512(w + r * 2 * LANES);
            fetch_ahead(w + r * 2 * LANES);
            for (int t = 0; t < N; t++) acc[r][t] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][t], a, b[t]);
        }
#else
        for (int half = 0; half < 2 * LANES; half += LANES)
            for (int r = 0; r < R; r++) {
                Floats a = load(w + r * 2 * LANES + half);
                for (int t = 0; t < N; t++) acc[r][t] += a * load(x + t * in + k + half);
            }
#endif
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < N; t++) sums[r][t] = sum(acc[r][t]);
}

// N tokens against one panel, R rows at a time
template <int R, int N, class T, class Put>
void some_tokens(const T* panel, const T* x, int64_t in, int64_t row, int64_t first, Put put) {
    for (int64_t r = 0; r < PANEL; r += R) {
        float sums[R][N];
        multiply<R, N>(panel + r * LINE<T>, x + first * in, in, sums);
        for (int i = 0; i < R; i++)
            for (int t = 0; t < N; t++) put(row + r + i, first + t, sums[i][t]);
    }
}

struct Share { int64_t first, end; };

// This thread's part of `count` things
Share share(int64_t count) {
    int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    return {count * me / all, count * (me + 1) / all};
}

// put(row, token, W x) for the rows of panels [first, end) of W [.., in] and x [n, in]
template <class T, class Put>
void product(const T* w, const T* x, int64_t in, Share panels, int64_t n, Put put) {
    for (int64_t p = panels.first; p < panels.end; p++) {
        const T* panel = w + p * PANEL * in;
        int64_t t = 0, row = p * PANEL;
        for (; t + MOST <= n; t += MOST) some_tokens<4, MOST>(panel, x, in, row, t, put);
        switch (n - t) {
            case 1: some_tokens<16, 1>(panel, x, in, row, t, put); break;
            case 2: some_tokens<8, 2>(panel, x, in, row, t, put); break;
            case 3: some_tokens<8, 3>(panel, x, in, row, t, put); break;
            case 4: some_tokens<4, 4>(panel, x, in, row, t, put); break;
            case 5: some_tokens<4, 5>(panel, x, in, row, t, put); break;
        }
    }
}

#ifdef __AMX_BF16__
constexpr bool HAS_TILES = true;

bool ask_for_tiles() {
    constexpr int ask_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, ask_permission, tile_data) == 0;
}

void shape_tiles() {
    struct alignas(64) { uint8_t palette = 1, zeros[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = PANEL;
    _tile_loadconfig(&config);
}

void free_tiles() { _tile_release(); }

// x [n, in] to [n / 16][in / 2][16 tokens][2], the second operand of tile products
void pack(const bfloat* x, int64_t in, int64_t n, uint32_t* to) {
    for (int64_t first = 0; first < n; first += PANEL, x += PANEL * in, to += PANEL * in / 2) {
        int64_t count = n - first < PANEL ? n - first : PANEL;
        for (int64_t pair = 0; pair < in / 2; pair++)
            for (int64_t t = 0; t < count; t++) std::memcpy(to + pair * PANEL + t, x + t * in + 2 * pair, 4);
    }
}

// One panel against B blocks of 16 tokens from `first` on: sums in tiles 0 and 1, weights in 4, tokens in 6 and 7
template <int B, class Put>
void some_tiles(const bfloat* w, const uint32_t* packed, int64_t in, int64_t row, Share tokens, Put put) {
    const uint32_t* x = packed + tokens.first * in / 2;
    _tile_zero(0); _tile_zero(1);
    for (int64_t k = 0; k < in; k += 2 * LANES, w += PANEL * 2 * LANES, x += PANEL * LANES) {
        for (int64_t r = 0; r < PANEL; r++) fetch_ahead(w + r * 2 * LANES);
        _tile_loadd(4, w, 64);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (B == 2) {
            _tile_loadd(7, x + PANEL * in / 2, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
    }
    float sums[2][PANEL][PANEL];
    _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64);
    for (int64_t t = 0; t < tokens.end - tokens.first; t++)
        for (int64_t r = 0; r < PANEL; r++) put(row + r, tokens.first + t, sums[t / PANEL][r][t % PANEL]);
}

template <class Put>
void tile_product(const bfloat* w, const uint32_t* packed, int64_t in, Share panels, int64_t n, Put put) {
    for (int64_t p = panels.first; p < panels.end; p++)
        for (int64_t first = 0; first < n; first += 2 * PANEL) {
            Share tokens = {first, first + 2 * PANEL < n ? first + 2 * PANEL : n};
            if (tokens.end - first > PANEL) some_tiles<2>(w + p * PANEL * in, packed, in, p * PANEL, tokens, put);
            else some_tiles<1>(w + p * PANEL * in, packed, in, p * PANEL, tokens, put);
        }
}
#else
constexpr bool HAS_TILES = false;
bool ask_for_tiles() { return false; }
void shape_tiles() {}
void free_tiles() {}
#endif

template <class T>
void normalise(const float* x, const float* weight, float eps, int64_t n, int64_t hidden, T* y) {
    for (int64_t t = 0; t < n; t++, x += hidden, y += hidden) {
        Floats squares{};
        for (int64_t k = 0; k < hidden; k += LANES) squares += load(x + k) * load(x + k);
        float scale = 1 / std::sqrt(sum(squares) / hidden + eps);
        for (int64_t k = 0; k < hidden; k += LANES) store(load(x + k) * scale * load(weight + k), y + k);
    }
}

}  // namespace

extern "C" {

struct Layer { const void *qkv, *out, *gate_up, *down; const float *norm_in, *norm_mid; void *keys, *values; };

struct Model {
    const Layer* layers;
    const void *embedding, *head;
    const float *norm, *cosines, *sines;  // [positions, size], the sine of the first half negated
    int64_t layer_count, hidden, inner, heads, kv_heads, size, rows, positions;
    float eps;
};

// Buffers between steps: x [n, hidden], mixed [n, (heads + 2 kv heads) size], wide [n, 2 inner], seen, scores; own per thread
struct Work { float *x, *mixed, *wide, *scores; void *seen, *gated, *normed, *packed; int64_t packed_words; };

}

namespace {

template <class T>
struct Pass {
    static constexpr bool bf16 = sizeof(T) == 2;
    const Model& m;
    const Work& work;
    int64_t n, start;
    bool tiles;
    T *normed, *seen = (T*)work.seen, *gated = (T*)work.gated;
    uint32_t* packed;
    float* scores;
    int64_t width = (m.heads + 2 * m.kv_heads) * m.size;

    Pass(const Model& model, const Work& w, int64_t count, int64_t from, bool use_tiles)
        : m(model), work(w), n(count), start(from), tiles(use_tiles) {
        int64_t me = omp_get_thread_num();
        normed = (T*)work.normed + me * n * m.hidden;
        packed = (uint32_t*)work.packed + me * w.packed_words;
        scores = work.scores + me * MOST * m.positions;
    }

    // put(row, token, W x) for these panels of W [.., in] and x [count, in]; again: the call before had the same x
    template <class Put>
    void multiply_rows(const void* weights, const T* x, int64_t in, Share panels, int64_t count, Put put, bool again = false) {
        const T* w = (const T*)weights;
#ifdef __AMX_BF16__
        if constexpr (bf16)
            if (tiles) {
                if (!again) pack(x, in, count, packed);
                return tile_product(w, packed, in, panels, count, put);
            }
#endif
        product(w, x, in, panels, count, put);
    }

    void embed(const int64_t* tokens) {
        Share part = share(n);
        for (int64_t t = part.first; t < part.end; t++)
            for (int64_t k = 0; k < m.hidden; k += LANES)
                store(load((const T*)m.embedding + tokens[t] * m.hidden + k), work.x + t * m.hidden + k);
    }

    void add_to_x(const void* w, const T* y, int64_t in) {
        float* x = work.x;
        int64_t hidden = m.hidden;
        multiply_rows(w, y, in, share(hidden / PANEL), n, [=](int64_t r, int64_t t, float v) { x[t * hidden + r] += v; });
    }

    void mix(const Layer& layer) {
        normalise(work.x, layer.norm_in, m.eps, n, m.hidden, normed);
        float* mixed = work.mixed;
        int64_t stride = width;
        multiply_rows(layer.qkv, normed, m.hidden, share(width / PANEL), n,
                      [=](int64_t r, int64_t t, float v) { mixed[t * stride + r] = v; });
    }

    // Turn queries and keys by their positions; keys and values go into the cache
    void remember(const Layer& layer) {
        int64_t each = m.heads + 2 * m.kv_heads, half = m.size / 2;
        Share part = share(n * each);
        for (int64_t i = part.first; i < part.end; i++) {
            int64_t t = i / each, head = i % each, position = start + t;
            float* v = work.mixed + t * width + head * m.size;
            const float *c = m.cosines + position * m.size, *s = m.sines + position * m.size;
            if (head < m.heads + m.kv_heads)
                for (int64_t k = 0; k < half; k++) {
                    float low = v[k] * c[k] + v[k + half] * s[k];
                    v[k + half] = v[k + half] * c[k + half] + v[k] * s[k + half];
                    v[k] = low;
                }
            if (head < m.heads) continue;
            if (head < m.heads + m.kv_heads) {
                T* tile = (T*)layer.keys + ((head - m.heads) * m.positions + position / TILE * TILE) * m.size + position % TILE;
                for (int64_t k = 0; k < m.size; k++) store(v[k], tile + k * TILE);
            } else {
                T* to = (T*)layer.values + ((head - m.heads - m.kv_heads) * m.positions + position) * m.size;
                for (int64_t k = 0; k < m.size; k++) store(v[k], to + k);
            }
        }
    }

    // One query head of N tokens from `first` on
    template <int N>
    void look(const Layer& layer, int64_t head, int64_t first) {
        int64_t kv = head / (m.heads / m.kv_heads), longest = start + first + N, size = m.size;
        const T *keys = (const T*)layer.keys + kv * m.positions * size, *values = (const T*)layer.values + kv * m.positions * size;
        const float* q[N];
        for (int t = 0; t < N; t++) q[t] = work.mixed + (first + t) * width + head * size;
        float scale = 1 / std::sqrt(float(size));
        for (int64_t j = 0; j < longest; j += TILE) {
            Floats acc[N][2] = {};
            const T* tile = keys + j * size;
            for (int64_t k = 0; k < size; k++, tile += TILE) {
                Floats low = load(tile), high = load(tile + LANES);
                for (int t = 0; t < N; t++) acc[t][0] += low * q[t][k], acc[t][1] += high * q[t][k];
            }
            for (int t = 0; t < N; t++)
                for (int half = 0; half < 2; half++) {
                    Floats scaled = acc[t][half] * scale;
                    std::memcpy(scores + t * m.positions + j + half * LANES, &scaled, sizeof scaled);
                }
        }
        float totals[N];
        for (int t = 0; t < N; t++) totals[t] = soften(scores + t * m.positions, start + first + t + 1, longest);
        int64_t k = 0;
        for (; k + 4 * LANES <= size; k += 4 * LANES) blend<N, 4>(values + k, head, first, longest, totals, k);
        for (; k < size; k += LANES) blend<N, 1>(values + k, head, first, longest, totals, k);
    }

    // What N tokens see of K vectors of values: their mean by the weights in `scores`
    template <int N, int K>
    void blend(const T* values, int64_t head, int64_t first, int64_t longest, const float* totals, int64_t k) {
        Floats acc[N][K] = {};
        for (int64_t j = 0; j < longest; j++, values += m.size) {
            Floats v[K];
            for (int i = 0; i < K; i++) v[i] = load(values + i * LANES);
            for (int t = 0; t < N; t++)
                for (int i = 0; i < K; i++) acc[t][i] += v[i] * scores[t * m.positions + j];
        }
        for (int t = 0; t < N; t++)
            for (int i = 0; i < K; i++)
                store(acc[t][i] / totals[t], seen + ((first + t) * m.heads + head) * m.size + k + i * LANES);
    }

    // Scores of positions [0, visible) to weights before division by their sum, which is returned; zero from there to `end`
    static float soften(float* s, int64_t visible, int64_t end) {
        int64_t padded = (end + LANES - 1) / LANES * LANES;
        for (int64_t j = visible; j < padded; j++) s[j] = -INFINITY;
        Floats top = load(s);
        for (int64_t j = LANES; j < padded; j += LANES) top = load(s + j) > top ? load(s + j) : top;
        float most = top[0];
        for (int i = 1; i < LANES; i++) most = top[i] > most ? top[i] : most;
        Floats total{};
        for (int64_t j = 0; j < padded; j += LANES) {
            Floats weight = exponential(load(s + j) - most);
            total += weight;
            std::memcpy(s + j, &weight, sizeof weight);
        }
        for (int64_t j = visible; j < padded; j++) s[j] = 0;
        return sum(total);
    }

    void attend(const Layer& layer) {
        int64_t blocks = (n + MOST - 1) / MOST;
        for (int64_t unit = omp_get_thread_num(); unit < m.heads * blocks; unit += omp_get_num_threads()) {
            int64_t head = unit / blocks, first = unit % blocks * MOST;
            switch (n - first) {
                case 1: look<1>(layer, head, first); break;
                case 2: look<2>(layer, head, first); break;
                case 3: look<3>(layer, head, first); break;
                case 4: look<4>(layer, head, first); break;
                case 5: look<5>(layer, head, first); break;
                default: look<MOST>(layer, head, first);
            }
        }
    }

    // silu(gate) * up, for this thread's part of the inner width
    void gate(const Layer& layer) {
        normalise(work.x, layer.norm_mid, m.eps, n, m.hidden, normed);
        Share part = share(m.inner / PANEL);
        int64_t inner = m.inner;
        float *gates = work.wide, *ups = work.wide + n * inner;
        const T* w = (const T*)layer.gate_up;
        multiply_rows(w, normed, m.hidden, part, n, [=](int64_t r, int64_t t, float v) { gates[t * inner + r] = v; });
        multiply_rows(w + inner * m.hidden, normed, m.hidden, part, n,
                      [=](int64_t r, int64_t t, float v) { ups[t * inner + r] = v; }, true);
        for (int64_t t = 0; t < n; t++)
            for (int64_t i = t * inner + part.first * PANEL; i < t * inner + part.end * PANEL; i += LANES)
                store(sigmoid(load(gates + i)) * load(gates + i) * load(ups + i), gated + i);
    }

    void say(int64_t keep, float* logits) {
        normalise(work.x + (n - keep) * m.hidden, m.norm, m.eps, keep, m.hidden, normed);
        int64_t rows = m.rows;
        multiply_rows(m.head, normed, m.hidden, share(rows / PANEL), keep,
                      [=](int64_t r, int64_t t, float v) { logits[t * rows + r] = v; });
    }

    void run(const int64_t* tokens, int64_t keep, float* logits) {
        embed(tokens);
#pragma omp barrier
        for (int64_t i = 0; i < m.layer_count; i++) {
            const Layer& layer = m.layers[i];
            mix(layer);
#pragma omp barrier
            remember(layer);
#pragma omp barrier
            attend(layer);
#pragma omp barrier
            add_to_x(layer.out, seen, m.heads * m.size);
#pragma omp barrier
            gate(layer);
#pragma omp barrier
            add_to_x(layer.down, gated, m.inner);
#pragma omp barrier
        }
        say(keep, logits);
    }
};

template <class T>
void forward(const Model& m, const Work& work, const int64_t* tokens, int64_t n, int64_t start, int64_t keep, float* logits, int threads) {
    static const bool allowed = HAS_TILES && sizeof(T) == 2 && ask_for_tiles();
    bool tiles = allowed && n >= TILES_FROM;
#pragma omp parallel num_threads(threads)
    {
        if (tiles) shape_tiles();
        Pass<T>(m, work, n, start, tiles).run(tokens, keep, logits);
        if (tiles) free_tiles();
    }
}

}  // namespace

extern "C" {

// Logits [keep, rows] of the last `keep` of n tokens, which take positions start, start + 1, ... of the cache
void step_float32(const Model* m, const Work* w, const int64_t* tokens, int64_t n, int64_t start, int64_t keep, float* logits, int threads) {
    forward<float>(*m, *w, tokens, n, start, keep, logits, threads);
}

void step_bfloat16(const Model* m, const Work* w, const int64_t* tokens, int64_t n, int64_t start, int64_t keep, float* logits, int threads) {
    forward<bfloat>(*m, *w, tokens, n, start, keep, logits, threads);
}

}
