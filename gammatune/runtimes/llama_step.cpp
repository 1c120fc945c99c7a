// One forward pass of a Llama or Qwen2 over some tokens, on CPU threads: every weight is read once, at the speed of memory.
//
// Each layer is RMS norm, QKV projection, RoPE with the write into the KV cache, attention (scores, softmax, weighted
// values), output projection; then RMS norm, SwiGLU and down projection. RMS norm and LM head end the pass. Weights and KV
// cache are of type T (float or bfloat16); all sums and the residual stream are float.
//
// Weights [out, in] lie in panels of PANEL rows, and in a panel line of 64 bytes by line: PANEL first lines, one of each
// row, then PANEL second ones. So a pass reads them front to back. A matrix may be held in bytes instead, see "in bytes".
// Keys lie in tiles [kv heads, positions / TILE, head size, TILE], so that the scores of TILE positions are sums of
// contiguous vectors; values as [kv heads, positions, head size].
//
// One or two tokens are multiplied by vector instructions; from TILES_FROM on, where a processor has them, by tile
// instructions (AMX), with which sixteen tokens cost about what one does. With vectors of 8 numbers, which leave few
// registers, several tokens take their products lane by lane, see there; the sums are the same. Each kind adds up a row in one order, whatever the
// count of tokens and threads, but the two orders differ: a token fed alone or with one other gives the same bits, and
// without tiles (in float always) a token in any feed does. Products of bytes add up integers, so they are the same always.
//
// A pass is a chain of phases with a barrier between; in each, a thread takes its share of the panels, or of the heads.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <omp.h>
#include <type_traits>
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
#define SHORT_PRODUCTS  // of 16-bit numbers, where no instruction multiplies bytes
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
#define BY_LANES
#endif
#if defined(__AVX2__) || defined(__AVX512BF16__) || defined(__AVX512VNNI__) || defined(TILES)
#include <immintrin.h>
#endif

namespace {

// Floats in a vector: as many as a register holds, since GCC keeps wider vectors in memory
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
constexpr int64_t PANEL = 16;       // rows of a panel of weights
constexpr int64_t TILE = 32;        // positions of a tile of keys
constexpr int64_t TOKEN_GROUP = 6;  // tokens at a time, so that their sums stay in vector registers
constexpr int64_t TILES_FROM = 3;   // tokens from which tile instructions are faster
using Floats = float __attribute__((vector_size(4 * LANES)));
using Ints = int32_t __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));
using Shorts = int16_t __attribute__((vector_size(2 * LANES)));
using Bytes = int8_t __attribute__((vector_size(LANES)));
using PanelInts = int32_t __attribute__((vector_size(4 * PANEL)));
using PanelWords = uint32_t __attribute__((vector_size(4 * PANEL)));
struct bfloat16 { uint16_t bits; };

Floats broadcast(float value) { return Floats{} + value; }

Floats load(const float* from) {
    Floats v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

Floats load(const bfloat16* from) {
    Halves h;
    std::memcpy(&h, from, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}

float widen(float value) { return value; }

float widen(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

void store(float value, float* to) { *to = value; }

void store(float value, bfloat16* to) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to->bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

void store(Floats v, float* to) { std::memcpy(to, &v, sizeof v); }

void store(Floats v, bfloat16* to) {
    Words bits = (Words)v;
    Halves h = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    std::memcpy(to, &h, sizeof h);
}

// Weights come in the order in which they lie, so what is needed next is known
void prefetch_after(const void* now) { __builtin_prefetch((const char*)now + 8192, 0, 2); }

float highest(Floats v) {
    float top = v[0];
    for (int i = 1; i < LANES; i++) top = v[i] > top ? v[i] : top;
    return top;
}

float sum(Floats v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

int32_t sum(Ints v) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// exp of x <= 0: 2^whole * 2^rest, the rest in [-1/2, 1/2] by its series; relative error under 1e-7
Floats exp_to_zero(Floats x) {
    Floats y = x * 1.44269504f;
    y = y < -126.0f ? broadcast(-126.0f) : y;
    Floats whole = (y + 12582912.0f) - 12582912.0f, r = y - whole;
    Floats p = broadcast(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = p * r + c;
    return p * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

Floats sigmoid(Floats x) {
    Floats e = exp_to_zero(x < 0.0f ? x : -x);  // of -|x|
    return (x < 0.0f ? e : broadcast(1.0f)) / (1.0f + e);
}

template <class T>
constexpr int64_t LINE = 64 / sizeof(T);  // numbers in a cache line

// Tokens and rows of a panel that are multiplied at a time: as many sums as the processor has registers for
#ifdef __AVX512F__
constexpr int SOME_TOKENS = 6;
constexpr int rows_beside(int tokens) { return tokens == 1 ? 16 : tokens < 4 ? 8 : 4; }
#else
constexpr int SOME_TOKENS = 3;
constexpr int rows_beside(int tokens) { return tokens == 1 ? 8 : 4; }
#endif

#ifdef __AVX512BF16__
template <class T>
using Factor = T;  // what weights of type T are multiplied by
#else
template <class T>
using Factor = float;
#endif

// Numbers for the product with weights of type T, in the order in which that takes them
void order_factors(const bfloat16* x, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += 2 * LANES, x += 2 * LANES, to += 2 * LANES) {
        Words pairs;
        std::memcpy(&pairs, x, sizeof pairs);
        store((Floats)(pairs << 16), to);
        store((Floats)(pairs & 0xffff0000), to + LANES);
    }
}

// sums[r][t] = weight row r . x row t, for R rows of the panel at w; lines of one row lie PANEL lines apart
template <int R, int N>
void dot_rows(const float* w, const float* x, int64_t in, float (*sums)[N]) {
    Floats acc[R][N] = {};
    for (int64_t k = 0; k < in; k += LINE<float>, w += PANEL * LINE<float>) {
        for (int r = 0; r < R; r++) prefetch_after(w + r * LINE<float>);
        for (int64_t part = 0; part < LINE<float>; part += LANES) {
            Floats b[N];
            for (int t = 0; t < N; t++) b[t] = load(x + t * in + k + part);
            for (int r = 0; r < R; r++) {
                Floats a = load(w + r * LINE<float> + part);
                for (int t = 0; t < N; t++) acc[r][t] += a * b[t];
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < N; t++) sums[r][t] = sum(acc[r][t]);
}

#ifdef __AVX512BF16__
template <int R, int N>
void dot_rows(const bfloat16* w, const bfloat16* x, int64_t in, float (*sums)[N]) {
    Floats acc[R][N] = {};
    for (int64_t k = 0; k < in; k += 2 * LANES, w += PANEL * 2 * LANES) {
        __m512bh b[N];
        for (int t = 0; t < N; t++) b[t] = (__m512bh)_mm512_loadu_si512(x + t * in + k);
        for (int r = 0; r < R; r++) {
            __m512bh a = (__m512bh)_mm512_loadu_si512(w + r * 2 * LANES);
            prefetch_after(w + r * 2 * LANES);
            for (int t = 0; t < N; t++) acc[r][t] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][t], a, b[t]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < N; t++) sums[r][t] = sum(acc[r][t]);
}
#else
// A word holds two weights, of which each is a float but for the other's bits; x as order_factors leaves it
template <int R, int N>
void dot_rows(const bfloat16* w, const float* x, int64_t in, float (*sums)[N]) {
    Floats acc[R][N] = {};
    for (int64_t k = 0; k < in; k += LINE<bfloat16>, w += PANEL * LINE<bfloat16>) {
        for (int r = 0; r < R; r++) prefetch_after(w + r * LINE<bfloat16>);
        for (int64_t part = 0; part < LINE<bfloat16>; part += 2 * LANES)
            for (int r = 0; r < R; r++) {
                Words pairs;
                std::memcpy(&pairs, w + r * LINE<bfloat16> + part, sizeof pairs);
                Floats even = (Floats)(pairs << 16), odd = (Floats)(pairs & 0xffff0000);
                const float* factors = x + k + part;
                for (int t = 0; t < N; t++, factors += in) {
                    acc[r][t] += even * load(factors);
                    acc[r][t] += odd * load(factors + LANES);
                }
            }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < N; t++) sums[r][t] = sum(acc[r][t]);
}
#endif

// One panel against N tokens from `first` on
template <int N, class T, class Put>
void multiply_panel(const T* panel, const Factor<T>* x, int64_t in, int64_t row, int64_t first, Put put) {
    constexpr int R = rows_beside(N);
    for (int64_t r = 0; r < PANEL; r += R) {
        float sums[R][N];
        dot_rows<R, N>(panel + r * LINE<T>, x + first * in, in, sums);
        for (int i = 0; i < R; i++)
            for (int t = 0; t < N; t++) put(row + r + i, first + t, sums[i][t]);
    }
}

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// OpenMP's own barrier may spin for 16 ms (GNU). Where some other program wants a core too, the thread that is waited for
// then gets none, at every barrier of every layer: a forward takes 50 times as long. Here a thread soon goes to sleep.
class Barrier {
    static constexpr int SPINS = 2000;  // about 0.1 ms
    std::atomic<int> arrived{0}, phase{0};

public:
    void wait() {
        int now = phase.load();
        if (arrived.fetch_add(1) + 1 == omp_get_num_threads()) {
            arrived.store(0);  // before the phase, after which the others may arrive again
            phase.fetch_add(1);
            phase.notify_all();
            return;
        }
        for (int i = 0; i < SPINS; i++, pause())
            if (phase.load() != now) return;
        phase.wait(now);
    }
};

struct Range { int64_t first, end; };

// This thread's part of `count` things
Range my_share(int64_t count) {
    int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
    return {count * thread / team, count * (thread + 1) / team};
}

// put(row, token, W x) for the rows of panels [first, end) of W [.., in] and x [n, in]
template <class T, class Put>
void multiply_by_vectors(const T* w, const Factor<T>* x, int64_t in, Range panels, int64_t n, Put put) {
    for (int64_t p = panels.first; p < panels.end; p++) {
        const T* panel = w + p * PANEL * in;
        int64_t t = 0, row = p * PANEL;
        for (; t + SOME_TOKENS <= n; t += SOME_TOKENS) multiply_panel<SOME_TOKENS>(panel, x, in, row, t, put);
        switch (n - t) {
            case 1: multiply_panel<1>(panel, x, in, row, t, put); break;
            case 2: multiply_panel<2>(panel, x, in, row, t, put); break;
            case 3: multiply_panel<3>(panel, x, in, row, t, put); break;
            case 4: multiply_panel<4>(panel, x, in, row, t, put); break;
            case 5: multiply_panel<5>(panel, x, in, row, t, put); break;
        }
    }
}

#ifdef BY_LANES
// Several tokens against a panel, in the same sums as dot_rows: lane i of a row's vector adds up every 8th column (every 8th
// pair of columns in bfloat16), and the 8 lanes are added at the end. Here a vector holds 8 rows instead, and one lane is
// summed after another. So a register serves as many products as there are tokens and each weight is loaded once for six of
// them: up to six tokens cost what one does, the time to read the weights. For that a panel is turned first.

constexpr int64_t LANE_WORDS = 8;

// 8 x 8 words, rows to columns
void transpose(__m256 rows[8]) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0b01000100);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0b11101110);
        }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// A panel [in / 16][PANEL rows][16 words] to [8 lanes][words / 8][PANEL rows]; `words` of each row, of one float or two
// bfloat16 each
void turn_panel(const float* panel, int64_t words, float* to) {
    int64_t steps = words / LANE_WORDS;
    for (int64_t step = 0; step < steps; step++)
        for (int64_t first = 0; first < PANEL; first += 8) {
            const float* from = panel + step / 2 * PANEL * 16 + step % 2 * LANE_WORDS + first * 16;
            __m256 rows[8];
            for (int r = 0; r < 8; r++) rows[r] = _mm256_loadu_ps(from + r * 16);
            transpose(rows);
            for (int lane = 0; lane < 8; lane++) _mm256_storeu_ps(to + (lane * steps + step) * PANEL + first, rows[lane]);
        }
}

// x [n, in] to [groups of up to 6 tokens][8 lanes][words / 8][1 or 2 columns of a word][tokens of the group]
template <class T>
void pack_lanes(const T* x, int64_t in, int64_t n, float* to) {
    constexpr int64_t IN_WORD = 4 / sizeof(T);
    int64_t steps = in / IN_WORD / LANE_WORDS;
    for (int64_t first = 0; first < n; first += TOKEN_GROUP) {
        int64_t count = n - first < TOKEN_GROUP ? n - first : TOKEN_GROUP;
        for (int64_t t = 0; t < count; t++)
            for (int64_t step = 0; step < steps; step++)
                for (int64_t lane = 0; lane < LANE_WORDS; lane++)
                    for (int64_t c = 0; c < IN_WORD; c++)
                        to[((lane * steps + step) * IN_WORD + c) * count + t] =
                            widen(x[(first + t) * in + (step * LANE_WORDS + lane) * IN_WORD + c]);
        to += count * in;
    }
}

// sums[t] += the 16 rows' column times number t of x, for N tokens
template <int N>
void add_column(__m256 low, __m256 high, const float* x, __m256 (&sums)[N][2]) {
#pragma GCC unroll 6
    for (int t = 0; t < N; t++) {
        __m256 factor = _mm256_broadcast_ss(x + t);
        sums[t][0] = _mm256_fmadd_ps(low, factor, sums[t][0]);
        sums[t][1] = _mm256_fmadd_ps(high, factor, sums[t][1]);
    }
}

// One lane of a turned panel against N tokens; to [N, 16 rows], added to what is there but for the first lane. next: what
// the memory should bring meanwhile, a cache line each step, or null
template <int N, class T>
void multiply_lane(const float* w, const float* x, int64_t steps, bool first, const char* next, float* to) {
    __m256 sums[N][2];
#pragma GCC unroll 6  // else GCC keeps the sums in memory
    for (int t = 0; t < N; t++) sums[t][0] = sums[t][1] = _mm256_setzero_ps();
    for (int64_t step = 0; step < steps; step++, w += PANEL, x += 4 / sizeof(T) * N) {
        if (next) __builtin_prefetch(next + 64 * step, 0, 2);
        __m256 low = _mm256_loadu_ps(w), high = _mm256_loadu_ps(w + 8);
        if constexpr (sizeof(T) == 4) {
            add_column<N>(low, high, x, sums);
        } else {
            const __m256 odd = (__m256)_mm256_set1_epi32(0xffff0000);
            add_column<N>((__m256)_mm256_slli_epi32((__m256i)low, 16), (__m256)_mm256_slli_epi32((__m256i)high, 16), x, sums);
            add_column<N>(_mm256_and_ps(low, odd), _mm256_and_ps(high, odd), x + N, sums);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < N; t++)
        for (int half = 0; half < 2; half++) {
            float* place = to + t * PANEL + 8 * half;
            _mm256_storeu_ps(place, first ? sums[t][half] : _mm256_add_ps(_mm256_loadu_ps(place), sums[t][half]));
        }
}

// put(row, token, W x) for one turned panel and N tokens from `token` on
template <int N, class T, class Put>
void multiply_turned(const float* w, const float* x, int64_t steps, int64_t row, int64_t token, const char* next, Put put) {
    float sums[N * PANEL];
    for (int64_t lane = 0; lane < 8; lane++) {
        multiply_lane<N, T>(w, x, steps, lane == 0, next, sums);
        w += steps * PANEL, x += steps * 4 / sizeof(T) * N;
        if (next) next += 64 * steps;
    }
    for (int t = 0; t < N; t++)
        for (int64_t r = 0; r < PANEL; r++) put(row + r, token + t, sums[t * PANEL + r]);
}

// put(row, token, W x) for the rows of these panels and x as pack_lanes leaves it; turned: for one panel
template <class T, class Put>
void multiply_by_lanes(const T* w, const float* packed, float* turned, int64_t in, Range panels, int64_t n, Put put) {
    int64_t words = in * sizeof(T) / 4, steps = words / LANE_WORDS;
    for (int64_t p = panels.first, row = p * PANEL; p < panels.end; p++, row += PANEL) {
        turn_panel((const float*)(w + p * PANEL * in), words, turned);
        for (int64_t t = 0; t < n; t += TOKEN_GROUP) {
            const char* next = t == 0 && p + 1 < panels.end ? (const char*)(w + (p + 1) * PANEL * in) : nullptr;
            const float* x = packed + t * in;
            switch (n - t) {
                case 1: multiply_turned<1, T>(turned, x, steps, row, t, next, put); break;
                case 2: multiply_turned<2, T>(turned, x, steps, row, t, next, put); break;
                case 3: multiply_turned<3, T>(turned, x, steps, row, t, next, put); break;
                case 4: multiply_turned<4, T>(turned, x, steps, row, t, next, put); break;
                case 5: multiply_turned<5, T>(turned, x, steps, row, t, next, put); break;
                default: multiply_turned<TOKEN_GROUP, T>(turned, x, steps, row, t, next, put);
            }
        }
    }
}
#endif

#ifdef TILES
constexpr bool HAS_TILES = true;

// Linux lets a process use tile registers only after it asked
bool permit_tiles() {
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// Tiles of 16 lines of 64 bytes; but 2, 3 and 5, for the first 16 tokens of products of bytes, have a line for each token
void configure_tiles(int64_t n) {
    struct alignas(64) { uint8_t palette = 1, zeros[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = PANEL;
    for (int i : {2, 3, 5}) config.rows[i] = n < PANEL ? n : PANEL;
    _tile_loadconfig(&config);
}

void release_tiles() { _tile_release(); }

// x [n, in] to [n / 16][in / 2][16 tokens][2], the second operand of tile products
void pack_tokens(const bfloat16* x, int64_t in, int64_t n, uint32_t* to) {
    for (int64_t first = 0; first < n; first += PANEL, x += PANEL * in, to += PANEL * in / 2) {
        int64_t count = n - first < PANEL ? n - first : PANEL;
        for (int64_t pair = 0; pair < in / 2; pair++)
            for (int64_t t = 0; t < count; t++) std::memcpy(to + pair * PANEL + t, x + t * in + 2 * pair, 4);
    }
}

// One panel against B groups of 16 tokens: sums in tiles 0 and 1, weights in 4, tokens in 6 and 7
template <int B, class Put>
void multiply_panel_by_tiles(const bfloat16* w, const uint32_t* packed, int64_t in, int64_t row, Range tokens, Put put) {
    const uint32_t* x = packed + tokens.first * in / 2;
    _tile_zero(0); _tile_zero(1);
    for (int64_t k = 0; k < in; k += 2 * LANES, w += PANEL * 2 * LANES, x += PANEL * LANES) {
        for (int64_t r = 0; r < PANEL; r++) prefetch_after(w + r * 2 * LANES);
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
void multiply_by_tiles(const bfloat16* w, const uint32_t* packed, int64_t in, Range panels, int64_t n, Put put) {
    for (int64_t p = panels.first; p < panels.end; p++)
        for (int64_t first = 0; first < n; first += 2 * PANEL) {
            Range tokens = {first, first + 2 * PANEL < n ? first + 2 * PANEL : n};
            const bfloat16* panel = w + p * PANEL * in;
            if (tokens.end - first > PANEL) multiply_panel_by_tiles<2>(panel, packed, in, p * PANEL, tokens, put);
            else multiply_panel_by_tiles<1>(panel, packed, in, p * PANEL, tokens, put);
        }
}
#else
constexpr bool HAS_TILES = false;
bool permit_tiles() { return false; }
void configure_tiles(int64_t) {}
void release_tiles() {}
#endif

// Matrices in bytes: a weight is the scale of its row times (byte - 128), a panel is [in / 4][PANEL rows][4 columns].
//
// A token is turned into 16-bit fixed point, x = unit (256 high + low) with signed bytes, since instructions multiply bytes
// only; rounding to bfloat16 loses more of a product. They multiply an unsigned byte by a signed one: hence the 128, whose
// share of a sum depends on the token alone. All sums are of integers and thus exact: a token gets the same bits by every
// kernel, on every processor, with however many others it is fed. int32 holds them for up to 65,000 columns.
struct FixedToken { float unit; int32_t high_sum, low_sum; };

struct FixedTokens {
    int64_t in;
    int8_t *high, *low;  // [n, in] each
    int16_t* whole;      // or both as one number, [n, in]
    FixedToken* tokens;  // [n]

    // Places for n tokens, and for as many more as a tile takes too many, from `memory` on
    FixedTokens(void* memory, int64_t n, int64_t width) : in(width), high((int8_t*)memory), whole((int16_t*)memory) {
        low = high + (n + PANEL) * in;
        tokens = (FixedToken*)(low + (n + PANEL) * in);
    }
};

template <class T>
void to_fixed_point(const T* x, int64_t n, const FixedTokens& to) {
    constexpr float MOST = 127 * 256;
    for (int64_t t = 0, i = 0; t < n; t++) {
        Floats top{}, poison{};
        for (int64_t k = 0; k < to.in; k += LANES) {
            Floats v = load(x + i + k), size = v < 0.0f ? -v : v;
            top = size > top ? size : top;
            poison += v * 0.0f;  // NaN from what is not finite: it must not become a number
        }
        float most = highest(top), inverse = most > 1e-30f ? MOST / most : 0;
        Ints high_sum{}, low_sum{};
        for (int64_t k = 0; k < to.in; k += LANES, i += LANES) {
            Ints whole = __builtin_convertvector((load(x + i) * inverse + 12582912.0f) - 12582912.0f, Ints);
            Ints low = whole << 24 >> 24, high = (whole - low) >> 8;
#ifdef SHORT_PRODUCTS
            Shorts shorts = __builtin_convertvector(whole, Shorts);
            std::memcpy(to.whole + i, &shorts, sizeof shorts);
#else
            Bytes lows = __builtin_convertvector(low, Bytes), highs = __builtin_convertvector(high, Bytes);
            std::memcpy(to.low + i, &lows, sizeof lows);
            std::memcpy(to.high + i, &highs, sizeof highs);
#endif
            low_sum += low, high_sum += high;
        }
        to.tokens[t] = {(inverse > 0 ? most / MOST : 0) + sum(poison), sum(high_sum), sum(low_sum)};
    }
}

// put(row, token, W x) for PANEL rows, from their sums with unsigned bytes
template <class Sums, class Put>
void put_rows(const Sums& sums, const float* scales, const FixedToken& token, int64_t row, int64_t t, Put put) {
    int64_t columns = 256 * (int64_t)token.high_sum + token.low_sum;
    for (int64_t r = 0; r < PANEL; r++)
        put(row + r, t, float(sums(r) - 128 * columns) * (scales[row + r] * token.unit));
}

#ifdef SHORT_PRODUCTS
// One panel against N tokens from `first` on, in products of 16-bit numbers, 8 rows at a time
template <int N, class Put>
void multiply_bytes(const uint8_t* w, const float* scales, const FixedTokens& x, int64_t row, int64_t first, Put put) {
    constexpr int64_t MOST = 4 * 64;  // columns whose products int32 can hold: 255 * 32,512 * 256 < 2^31
    const int16_t* wholes = x.whole + first * x.in;
    int64_t totals[N][PANEL] = {};
    for (int64_t from = 0; from < x.in; from += MOST, w += MOST * PANEL)
        for (int64_t half = 0; half < PANEL; half += PANEL / 2) {
            const uint8_t* line = w + half * 4;
            int64_t end = from + MOST < x.in ? from + MOST : x.in;
            __m256i acc[N][2] = {};
            for (int64_t k = from; k < end; k += 4, line += 64) {
                __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)line));
                __m256i high = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)line + 1));
                prefetch_after(line);
                for (int t = 0; t < N; t++) {
                    int64_t four;
                    std::memcpy(&four, wholes + t * x.in + k, sizeof four);
                    __m256i columns = _mm256_set1_epi64x(four);
                    acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(low, columns));
                    acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(high, columns));
                }
            }
            for (int t = 0; t < N; t++) {  // each row has two sums side by side
                alignas(32) int32_t sums[PANEL / 2];
                __m256i pairs = _mm256_hadd_epi32(acc[t][0], acc[t][1]);
                _mm256_store_si256((__m256i*)sums, _mm256_permute4x64_epi64(pairs, 0b11011000));
                for (int64_t r = 0; r < PANEL / 2; r++) totals[t][half + r] += sums[r];
            }
        }
    for (int t = 0; t < N; t++)
        put_rows([&](int64_t r) { return totals[t][r]; }, scales, x.tokens[first + t], row, first + t, put);
}
#else
// Of a sum with high and one with low bytes
auto join_sums(const PanelInts& high, const PanelInts& low) {
    return [&](int64_t r) { return 256 * (int64_t)high[r] + low[r]; };
}

// sum += 4 unsigned bytes . 4 signed ones, for each of 16 rows
PanelInts add_products(PanelInts sum, PanelWords line, const int8_t* x) {
#ifdef __AVX512VNNI__
    int32_t four;
    std::memcpy(&four, x, 4);
    return (PanelInts)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)line, _mm512_set1_epi32(four));
#else
    for (int c = 0; c < 4; c++) sum += (PanelInts)((line >> (8 * c)) & 255) * x[c];
    return sum;
#endif
}

// One panel against N tokens from `first` on. One sum would wait for itself, hence several where tokens are few
template <int N, class Put>
void multiply_bytes(const uint8_t* w, const float* scales, const FixedTokens& x, int64_t row, int64_t first, Put put) {
    constexpr int UNROLL = N == 1 ? 4 : N < 4 ? 2 : 1;
    PanelInts high[UNROLL][N] = {}, low[UNROLL][N] = {};
    const int8_t *highs = x.high + first * x.in, *lows = x.low + first * x.in;
    for (int64_t k = 0; k < x.in; k += 4 * UNROLL)
        for (int u = 0; u < UNROLL; u++, w += 64) {
            PanelWords line;
            std::memcpy(&line, w, sizeof line);
            prefetch_after(w);
            for (int t = 0; t < N; t++) {
                high[u][t] = add_products(high[u][t], line, highs + t * x.in + k + 4 * u);
                low[u][t] = add_products(low[u][t], line, lows + t * x.in + k + 4 * u);
            }
        }
    for (int t = 0; t < N; t++) {
        for (int u = 1; u < UNROLL; u++) high[0][t] += high[u][t], low[0][t] += low[u][t];
        put_rows(join_sums(high[0][t], low[0][t]), scales, x.tokens[first + t], row, first + t, put);
    }
}
#endif

#ifdef TILES
// One panel against `count` tokens in G groups of up to 16: sums in tiles 2 and 3 (second group: 0 and 1), weights in 4,
// tokens in 5 (6). Here weights are the second operand, since few tokens are then few lines of the first: less work
template <int G, class Put>
void multiply_bytes_by_tiles(const uint8_t* w, const float* scales, const FixedTokens& x, int64_t row, int64_t first,
                             int64_t count, Put put) {
    const int8_t *high = x.high + first * x.in, *low = x.low + first * x.in;
    _tile_zero(2); _tile_zero(3); _tile_zero(0); _tile_zero(1);
    for (int64_t k = 0; k < x.in; k += 64, w += 64 * PANEL) {
        for (int64_t line = 0; line < 16; line++) prefetch_after(w + 64 * line);
        _tile_loadd(4, w, 64);
        _tile_loadd(5, high + k, x.in);
        _tile_dpbsud(2, 5, 4);
        _tile_loadd(5, low + k, x.in);
        _tile_dpbsud(3, 5, 4);
        if constexpr (G == 2) {
            _tile_loadd(6, high + PANEL * x.in + k, x.in);
            _tile_dpbsud(0, 6, 4);
            _tile_loadd(6, low + PANEL * x.in + k, x.in);
            _tile_dpbsud(1, 6, 4);
        }
    }
    PanelInts highs[2 * PANEL], lows[2 * PANEL];  // of a token each
    _tile_stored(2, highs, 64); _tile_stored(3, lows, 64);
    if constexpr (G == 2) { _tile_stored(0, highs + PANEL, 64); _tile_stored(1, lows + PANEL, 64); }
    for (int64_t t = 0; t < count; t++) put_rows(join_sums(highs[t], lows[t]), scales, x.tokens[first + t], row, first + t, put);
}
#endif

// put(row, token, W x) for these panels of a W in bytes
template <class Put>
void multiply_by_bytes(const uint8_t* w, const float* scales, const FixedTokens& x, Range panels, int64_t n, bool tiles,
                       Put put) {
    for (int64_t p = panels.first; p < panels.end; p++)
        for (int64_t first = 0, count; first < n; first += count) {
            const uint8_t* panel = w + p * PANEL * x.in;
            int64_t row = p * PANEL, most = tiles ? 2 * PANEL : TOKEN_GROUP;
            count = n - first < most ? n - first : most;
#ifdef TILES
            if (tiles) {
                if (count > PANEL) multiply_bytes_by_tiles<2>(panel, scales, x, row, first, count, put);
                else multiply_bytes_by_tiles<1>(panel, scales, x, row, first, count, put);
                continue;
            }
#endif
            switch (count) {
                case 1: multiply_bytes<1>(panel, scales, x, row, first, put); break;
                case 2: multiply_bytes<2>(panel, scales, x, row, first, put); break;
                case 3: multiply_bytes<3>(panel, scales, x, row, first, put); break;
                case 4: multiply_bytes<4>(panel, scales, x, row, first, put); break;
                case 5: multiply_bytes<5>(panel, scales, x, row, first, put); break;
                default: multiply_bytes<TOKEN_GROUP>(panel, scales, x, row, first, put);
            }
        }
}

// Root mean square normalisation of n rows
template <class T>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t hidden, T* y) {
    for (int64_t t = 0; t < n; t++, x += hidden, y += hidden) {
        Floats squares{};
        for (int64_t k = 0; k < hidden; k += LANES) squares += load(x + k) * load(x + k);
        float scale = 1 / std::sqrt(sum(squares) / hidden + eps);
        for (int64_t k = 0; k < hidden; k += LANES) store(load(x + k) * scale * load(weight + k), y + k);
    }
}

}  // namespace

extern "C" {

// [out, in], of the model's type or, where each row has a scale, in bytes
struct Matrix {
    const void* panels;
    const float* scales;
};

struct Layer {
    Matrix qkv, output, gate, up, down;
    const float *qkv_bias, *attention_norm, *mlp_norm;  // the bias is zeros where a model has none
    void *keys, *values;  // this layer's KV cache
};

struct Model {
    const Layer* layers;
    Matrix lm_head;
    const void* embedding;
    const float *final_norm, *cosines, *sines;  // RoPE tables [positions, head size], the sine of the first half negated
    int64_t layer_count, hidden, intermediate, heads, kv_heads, head_size;
    int64_t embeddings, vocab, positions;  // rows of the embedding and of the LM head; of the KV cache
    float eps;
};

// What lies between the phases, for n tokens; the last four are one per thread
struct Buffers {
    float *residual;   // [n, hidden]
    float *qkv;        // [n, (heads + 2 kv heads) head size]
    float *gate_up;    // [2, n, intermediate]
    void *attended;    // [n, heads head size]
    void *swiglu;      // [n, intermediate]
    float *scores;     // [TOKEN_GROUP, positions] of one head, softmax weights later
    void *normed;      // [n, hidden]
    void *packed;      // tokens in the order of tile products or lane by lane, with one panel, or in fixed point
    int64_t packed_words;
};

}

namespace {

template <class T>
struct Pass {
    static constexpr bool bf16 = sizeof(T) == 2;
    const Model& m;
    const Buffers& buffers;
    int64_t n, start;
    bool tiles;
    Barrier& barrier;
    T *normed, *attended = (T*)buffers.attended, *swiglu_out = (T*)buffers.swiglu;
    uint32_t* packed;
    float* scores;
    int64_t qkv_width = (m.heads + 2 * m.kv_heads) * m.head_size;

    Pass(const Model& model, const Buffers& work, int64_t count, int64_t from, bool use_tiles, Barrier& shared)
        : m(model), buffers(work), n(count), start(from), tiles(use_tiles), barrier(shared) {
        int64_t thread = omp_get_thread_num();
        normed = (T*)work.normed + thread * n * m.hidden;
        packed = (uint32_t*)work.packed + thread * work.packed_words;
        scores = work.scores + thread * TOKEN_GROUP * m.positions;
    }

    // put(row, token, W x) for these panels of W [.., in] and x [count, in]; again: the call before had the same x
    template <class Put>
    void project(const Matrix& weights, const T* x, int64_t in, Range panels, int64_t count, Put put, bool again = false) {
        if (weights.scales) {
            FixedTokens fixed(packed, count, in);
            if (!again) to_fixed_point(x, count, fixed);
            return multiply_by_bytes((const uint8_t*)weights.panels, weights.scales, fixed, panels, count, tiles, put);
        }
        const T* w = (const T*)weights.panels;
#ifdef TILES
        if constexpr (bf16)
            if (tiles) {
                if (!again) pack_tokens(x, in, count, packed);
                return multiply_by_tiles(w, packed, in, panels, count, put);
            }
#endif
#ifdef BY_LANES
        if (count > 1) {
            float* lanes = (float*)packed;
            if (!again) pack_lanes(x, in, count, lanes);
            return multiply_by_lanes(w, lanes, lanes + count * in, in, panels, count, put);
        }
#endif
        if constexpr (std::is_same_v<T, Factor<T>>) return multiply_by_vectors(w, x, in, panels, count, put);
        float* factors = (float*)packed;
        if constexpr (bf16)
            if (!again) order_factors(x, count * in, factors);
        multiply_by_vectors(w, (const Factor<T>*)factors, in, panels, count, put);
    }

    void embed(const int64_t* tokens) {
        Range part = my_share(n);
        for (int64_t t = part.first; t < part.end; t++)
            for (int64_t k = 0; k < m.hidden; k += LANES)
                store(load((const T*)m.embedding + tokens[t] * m.hidden + k), buffers.residual + t * m.hidden + k);
    }

    // The output and the down projection end in the residual stream
    void project_and_add(const Matrix& w, const T* y, int64_t in) {
        float* residual = buffers.residual;
        int64_t hidden = m.hidden;
        project(w, y, in, my_share(hidden / PANEL), n,
                [=](int64_t r, int64_t t, float v) { residual[t * hidden + r] += v; });
    }

    // Every thread norms all tokens for itself: cheaper than a barrier
    void qkv_projection(const Layer& layer) {
        rms_norm(buffers.residual, layer.attention_norm, m.eps, n, m.hidden, normed);
        float* qkv = buffers.qkv;
        const float* bias = layer.qkv_bias;
        int64_t stride = qkv_width;
        project(layer.qkv, normed, m.hidden, my_share(stride / PANEL), n,
                [=](int64_t r, int64_t t, float v) { qkv[t * stride + r] = v + bias[r]; });
    }

    // RoPE of queries and keys by their positions; keys and values go into the KV cache
    void rope_and_cache(const Layer& layer) {
        int64_t each = m.heads + 2 * m.kv_heads, half = m.head_size / 2;
        Range part = my_share(n * each);
        for (int64_t i = part.first; i < part.end; i++) {
            int64_t t = i / each, head = i % each, position = start + t;
            float* v = buffers.qkv + t * qkv_width + head * m.head_size;
            const float *c = m.cosines + position * m.head_size, *s = m.sines + position * m.head_size;
            if (head < m.heads + m.kv_heads)
                for (int64_t k = 0; k < half; k++) {
                    float low = v[k] * c[k] + v[k + half] * s[k];
                    v[k + half] = v[k + half] * c[k + half] + v[k] * s[k + half];
                    v[k] = low;
                }
            if (head < m.heads) continue;  // a query: needed in this pass only
            if (head < m.heads + m.kv_heads) {
                int64_t first_of_tile = (head - m.heads) * m.positions + position / TILE * TILE;
                T* tile = (T*)layer.keys + first_of_tile * m.head_size + position % TILE;
                for (int64_t k = 0; k < m.head_size; k++) store(v[k], tile + k * TILE);
            } else {
                T* to = (T*)layer.values + ((head - m.heads - m.kv_heads) * m.positions + position) * m.head_size;
                for (int64_t k = 0; k < m.head_size; k++) store(v[k], to + k);
            }
        }
    }

    // Causal attention of one query head for N tokens from `first` on: softmax(q K / sqrt(head size)) V
    template <int N>
    void attention_head(const Layer& layer, int64_t head, int64_t first) {
        int64_t kv_head = head / (m.heads / m.kv_heads), longest = start + first + N, size = m.head_size;
        const T* keys = (const T*)layer.keys + kv_head * m.positions * size;
        const T* values = (const T*)layer.values + kv_head * m.positions * size;
        const float* q[N];
        for (int t = 0; t < N; t++) q[t] = buffers.qkv + (first + t) * qkv_width + head * size;
        float scale = 1 / std::sqrt(float(size));
        for (int64_t j = 0; j < longest; j += 2 * LANES) {  // scores of positions past a token are masked by softmax
            Floats acc[N][2] = {};
            const T* tile = keys + j / TILE * TILE * size + j % TILE;
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
        for (int t = 0; t < N; t++) totals[t] = softmax(scores + t * m.positions, start + first + t + 1, longest);
        int64_t k = 0;
        constexpr int K = LANES == 16 ? 4 : 2;
        for (; k + K * LANES <= size; k += K * LANES) weigh_values<N, K>(values + k, head, first, longest, totals, k);
        for (; k < size; k += LANES) weigh_values<N, 1>(values + k, head, first, longest, totals, k);
    }

    // K vectors of the values' mean by the softmax weights in `scores`, for N tokens
    template <int N, int K>
    void weigh_values(const T* values, int64_t head, int64_t first, int64_t longest, const float* totals, int64_t k) {
        Floats acc[N][K] = {};
        for (int64_t j = 0; j < longest; j++, values += m.head_size) {
            Floats v[K];
            for (int i = 0; i < K; i++) v[i] = load(values + i * LANES);
            for (int t = 0; t < N; t++)
                for (int i = 0; i < K; i++) acc[t][i] += v[i] * scores[t * m.positions + j];
        }
        for (int t = 0; t < N; t++)
            for (int i = 0; i < K; i++)
                store(acc[t][i] / totals[t], attended + ((first + t) * m.heads + head) * m.head_size + k + i * LANES);
    }

    // Softmax over the scores of positions [0, visible), but for the division by their sum, which is returned; positions
    // from there to `end`, which the token must not see, weigh nothing
    static float softmax(float* s, int64_t visible, int64_t end) {
        int64_t padded = (end + LANES - 1) / LANES * LANES;
        for (int64_t j = visible; j < padded; j++) s[j] = -INFINITY;
        Floats top = load(s);
        for (int64_t j = LANES; j < padded; j += LANES) top = load(s + j) > top ? load(s + j) : top;
        float most = highest(top);
        Floats total{};
        for (int64_t j = 0; j < padded; j += LANES) {
            Floats weight = exp_to_zero(load(s + j) - most);
            total += weight;
            std::memcpy(s + j, &weight, sizeof weight);
        }
        // exp_to_zero ends at 2^-126: too little to change a total of 1 or more, but values must meet a true zero
        for (int64_t j = visible; j < padded; j++) s[j] = 0;
        return sum(total);
    }

    void attention(const Layer& layer) {
        int64_t groups = (n + TOKEN_GROUP - 1) / TOKEN_GROUP;
        for (int64_t unit = omp_get_thread_num(); unit < m.heads * groups; unit += omp_get_num_threads()) {
            int64_t head = unit / groups, first = unit % groups * TOKEN_GROUP;
            switch (n - first) {
                case 1: attention_head<1>(layer, head, first); break;
                case 2: attention_head<2>(layer, head, first); break;
                case 3: attention_head<3>(layer, head, first); break;
                case 4: attention_head<4>(layer, head, first); break;
                case 5: attention_head<5>(layer, head, first); break;
                default: attention_head<TOKEN_GROUP>(layer, head, first);
            }
        }
    }

    // SwiGLU: silu(gate) * up, for this thread's part of the intermediate width
    void swiglu(const Layer& layer) {
        rms_norm(buffers.residual, layer.mlp_norm, m.eps, n, m.hidden, normed);
        Range part = my_share(m.intermediate / PANEL);
        int64_t width = m.intermediate;
        float *gates = buffers.gate_up, *ups = buffers.gate_up + n * width;
        auto put_gate = [=](int64_t r, int64_t t, float v) { gates[t * width + r] = v; };
        auto put_up = [=](int64_t r, int64_t t, float v) { ups[t * width + r] = v; };
        project(layer.gate, normed, m.hidden, part, n, put_gate);
        project(layer.up, normed, m.hidden, part, n, put_up, true);
        for (int64_t t = 0; t < n; t++)
            for (int64_t i = t * width + part.first * PANEL; i < t * width + part.end * PANEL; i += LANES)
                store(sigmoid(load(gates + i)) * load(gates + i) * load(ups + i), swiglu_out + i);
    }

    void lm_head(int64_t keep, float* logits) {
        rms_norm(buffers.residual + (n - keep) * m.hidden, m.final_norm, m.eps, keep, m.hidden, normed);
        int64_t vocab = m.vocab;
        project(m.lm_head, normed, m.hidden, my_share(vocab / PANEL), keep,
                [=](int64_t r, int64_t t, float v) { logits[t * vocab + r] = v; });
    }

    void run(const int64_t* tokens, int64_t keep, float* logits) {
        embed(tokens);
        barrier.wait();
        for (int64_t i = 0; i < m.layer_count; i++) {
            const Layer& layer = m.layers[i];
            qkv_projection(layer);
            barrier.wait();
            rope_and_cache(layer);
            barrier.wait();
            attention(layer);
            barrier.wait();
            project_and_add(layer.output, attended, m.heads * m.head_size);
            barrier.wait();
            swiglu(layer);
            barrier.wait();
            project_and_add(layer.down, swiglu_out, m.intermediate);
            barrier.wait();
        }
        lm_head(keep, logits);
        barrier.wait();  // so that OpenMP's own, which follows, waits for nobody
    }
};

template <class T>
bool forward(const Model& m, const Buffers& buffers, const int64_t* tokens, int64_t n, int64_t start, int64_t keep,
             float* logits, int threads) {
    for (int64_t t = 0; t < n; t++)
        if (tokens[t] < 0 || tokens[t] >= m.embeddings) return false;
    static const bool permitted = HAS_TILES && permit_tiles();
    bool tiles = permitted && n >= TILES_FROM;
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        if (tiles) configure_tiles(n);
        Pass<T>(m, buffers, n, start, tiles, barrier).run(tokens, keep, logits);
        if (tiles) release_tiles();
    }
    return true;
}

}  // namespace

extern "C" {

// Logits [keep, vocab] of the last `keep` of n tokens, which take positions start, start + 1, ... of the KV cache.
// False, and nothing done, where a token has no embedding
bool forward_float32(const Model* m, const Buffers* buffers, const int64_t* tokens, int64_t n, int64_t start, int64_t keep,
                     float* logits, int threads) {
    return forward<float>(*m, *buffers, tokens, n, start, keep, logits, threads);
}

bool forward_bfloat16(const Model* m, const Buffers* buffers, const int64_t* tokens, int64_t n, int64_t start, int64_t keep,
                      float* logits, int threads) {
    return forward<bfloat16>(*m, *buffers, tokens, n, start, keep, logits, threads);
}

}
