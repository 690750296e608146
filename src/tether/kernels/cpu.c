/* CPU kernels of tether: what torch has no fused form of. Plain C with OpenMP pragmas, compiled on
   first use for the machine at hand (build.py); every function has its equal in torch (ops in
   layers.py and head.py), against which it is tested.

   Numbers are float or bfloat16; sums are float. Callers see to shapes, types and contiguity. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SMALL 16384               /* numbers below which starting threads costs more than it saves */
#define BLOCK 48                  /* query rows at a time in attention */
#define SWEEP 64                  /* cached positions at a time in decoding (cache.py knows) */
#define PADDED(n) (((n) + 15) / 16 * 16)

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(64), aligned(4)));

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float from_bf16(bf16 x) { return as_float((uint32_t)x << 16); }

/* Round to nearest even; NaN stays NaN, so that a broken number is still seen. */
static inline bf16 to_bf16(float x) {
    uint32_t bits = as_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* exp(x) to 2 units in the last place, in a form that compilers vectorize (Cephes' polynomial).
   Below -87 the result is 0, above 88 about 1e38. NaN stays NaN. */
static inline float exp_(float x) {
    float clipped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(clipped * 1.44269504f);
    float r = clipped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    p *= as_float((uint32_t)((int32_t)n + 127) << 23);
    return x < -87.0f ? 0.0f : p;
}

/* Aligned, because the order in which vectorized loops add up may depend on the address. */
static float *floats(long n) {
    float *memory = aligned_alloc(64, (n * sizeof(float) + 64) / 64 * 64);
    if (!memory) abort();
    return memory;
}

static float *zeros(long n) { return memset(floats(n), 0, n * sizeof(float)); }

/* c (m rows of nv vectors) = or += a · b, all in registers; m and nv are constants where inlined. */
static inline __attribute__((always_inline)) void tile(const int m, const int nv, long k,
                                                       const float *a, long a_row, long a_col,
                                                       const float *b, long b_row, float *c,
                                                       long c_row, int add) {
    vec sum[6][4];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < nv; j++)
            sum[i][j] = add ? *(const vec *)(c + i * c_row + 16 * j) : (vec){0};
    for (long x = 0; x < k; x++) {
        vec right[4];
        for (int j = 0; j < nv; j++) right[j] = *(const vec *)(b + x * b_row + 16 * j);
        for (int i = 0; i < m; i++) {
            float left = a[i * a_row + x * a_col];
            for (int j = 0; j < nv; j++) sum[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < nv; j++) *(vec *)(c + i * c_row + 16 * j) = sum[i][j];
}

#define TILE(M, N) tile(M, N, k, a, a_row, a_col, b, b_row, c, c_row, add)
#define TILES(M) nv == 4 ? TILE(M, 4) : nv == 3 ? TILE(M, 3) : nv == 2 ? TILE(M, 2) : TILE(M, 1)

static void strip(long m, long nv, long k, const float *a, long a_row, long a_col, const float *b,
                  long b_row, float *c, long c_row, int add) {
    switch (m) {
        case 6: TILES(6); break;
        case 5: TILES(5); break;
        case 4: TILES(4); break;
        case 3: TILES(3); break;
        case 2: TILES(2); break;
        default: TILES(1);
    }
}

/* c (m, n) = or += a (m, k) · b (k, n) in float; n is a multiple of 16. a may be transposed by its
   strides. Small matrices that are in the cache. */
static void gemm(long m, long n, long k, const float *a, long a_row, long a_col, const float *b,
                 long b_row, float *c, long c_row, int add) {
    for (long j = 0; j < n; j += 64) {
        long nv = n - j < 64 ? (n - j) / 16 : 4;
        for (long i = 0; i < m; i += 6)
            strip(m - i < 6 ? m - i : 6, nv, k, a + i * a_row, a_row, a_col, b + j, b_row,
                  c + i * c_row + j, c_row, add);
    }
}

/* scores[0 … seen) become their softmax, the rest up to `width`, a multiple of 16, becomes 0;
   returns log Σ exp(scores). */
static float softmax_terms(long seen, long width, float *restrict scores) {
    float top = -INFINITY, total = 0;
    for (long j = seen; j < width; j++) scores[j] = -INFINITY;
#pragma omp simd reduction(max : top)
    for (long j = 0; j < width; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : total)
    for (long j = 0; j < width; j++) {
        scores[j] = exp_(scores[j] - top);
        total += scores[j];
    }
    float share = 1.0f / total;
#pragma omp simd
    for (long j = 0; j < width; j++) scores[j] *= share;
    return top + logf(total);
}

/* p: scores → probabilities; gp: gradient of the probabilities → gradient of the scores. */
static void softmax_gradient(long seen, long width, float lse, float along, float *restrict p,
                             float *restrict gp) {
#pragma omp simd
    for (long j = 0; j < width; j++) {
        float share = exp_(p[j] - lse);
        p[j] = j < seen ? share : 0;
        gp[j] = j < seen ? share * (gp[j] - along) : 0;
    }
}

/* So that 0 · log 0 is 0 and not NaN. */
static inline float bounded(float logp) { return logp < -1e4f ? -1e4f : logp; }

static inline vec load16_float(const float *x) { return *(const vec *)x; }

static inline vec load16_bf16(const bf16 *x) {
    typedef uint16_t narrow __attribute__((vector_size(32), aligned(2)));
    typedef uint32_t wide __attribute__((vector_size(64)));
    return (vec)(__builtin_convertvector(*(const narrow *)x, wide) << 16);
}

#define T float
#define LOAD(x) (x)
#define LOAD16(x) load16_float(x)
#define STORE(x) (x)
#define NAME(f) f##_float
#include "layers.h"
#undef T
#undef LOAD
#undef LOAD16
#undef STORE
#undef NAME

#define T bf16
#define LOAD(x) from_bf16(x)
#define LOAD16(x) load16_bf16(x)
#define STORE(x) to_bf16(x)
#define NAME(f) f##_bf16
#include "layers.h"
#undef T
#undef LOAD
#undef LOAD16
#undef STORE
#undef NAME

/* What a row of logits says: log-prob of its token, entropy and log Σ exp, at a temperature.
   entropy may be NULL. */
void logprobs(long rows, long vocabulary, const float *logits, const int64_t *token,
              float temperature, float *logprob, float *entropy, float *lse) {
    float inverse = 1.0f / temperature;
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *restrict z = logits + r * vocabulary;
        float top = -INFINITY, total = 0, weighted = 0;
#pragma omp simd reduction(max : top)
        for (long v = 0; v < vocabulary; v++) top = z[v] > top ? z[v] : top;
        if (entropy) {
#pragma omp simd reduction(+ : total, weighted)
            for (long v = 0; v < vocabulary; v++) {
                float below = bounded((z[v] - top) * inverse), p = exp_(below);
                total += p;
                weighted += p * below;
            }
            entropy[r] = logf(total) - weighted / total;
        } else {
#pragma omp simd reduction(+ : total)
            for (long v = 0; v < vocabulary; v++) total += exp_((z[v] - top) * inverse);
        }
        lse[r] = top * inverse + logf(total);
        logprob[r] = (z[token[r]] - top) * inverse - logf(total);
    }
}

/* Gradient of the logits from those of log-prob and entropy (grad_entropy may be NULL):
   dz = [g_logp·(1[v = token] − p) − g_H·p·(log p + H)] / temperature. */
#define LOGITS_GRADIENT(NAME, T, STORE)                                                           \
    void NAME(long rows, long vocabulary, const float *logits, const int64_t *token,              \
              float temperature, const float *lse, const float *entropy, const float *grad,       \
              const float *grad_entropy, T *out) {                                                \
        float inverse = 1.0f / temperature;                                                       \
        _Pragma("omp parallel for schedule(static)") for (long r = 0; r < rows; r++) {            \
            const float *restrict z = logits + r * vocabulary;                                    \
            T *restrict o = out + r * vocabulary;                                                 \
            float g = grad[r] * inverse, all = lse[r];                                            \
            if (grad_entropy) {                                                                   \
                float gh = grad_entropy[r] * inverse, h = entropy[r];                             \
                _Pragma("omp simd") for (long v = 0; v < vocabulary; v++) {                       \
                    float logp = bounded(z[v] * inverse - all), p = exp_(logp);                    \
                    o[v] = STORE(-p * (g + gh * (logp + h)));                                     \
                }                                                                                 \
                float logp = bounded(z[token[r]] * inverse - all), p = exp_(logp);                 \
                o[token[r]] = STORE(g - p * (g + gh * (logp + h)));                               \
            } else {                                                                              \
                _Pragma("omp simd") for (long v = 0; v < vocabulary; v++) o[v] =                  \
                    STORE(-g * exp_(z[v] * inverse - all));                                       \
                o[token[r]] = STORE(g - g * exp_(z[token[r]] * inverse - all));                   \
            }                                                                                     \
        }                                                                                         \
    }
#define SAME(x) (x)
LOGITS_GRADIENT(logits_gradient_float, float, SAME)
LOGITS_GRADIENT(logits_gradient_bf16, bf16, to_bf16)

/* One token a row by inverting the cumulative distribution at `uniform`, with its log-prob. */
void sample(long rows, long vocabulary, const float *logits, const float *uniform,
            float temperature, int64_t *token, float *logprob) {
    float inverse = 1.0f / temperature;
    long blocks = (vocabulary + 255) / 256;
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *restrict z = logits + r * vocabulary;
        float top = -INFINITY;
#pragma omp simd reduction(max : top)
        for (long v = 0; v < vocabulary; v++) top = z[v] > top ? z[v] : top;
        float *mass = zeros(blocks);
        double total = 0;
        for (long b = 0; b < blocks; b++) {
            long end = (b + 1) * 256 < vocabulary ? (b + 1) * 256 : vocabulary;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long v = b * 256; v < end; v++) sum += exp_((z[v] - top) * inverse);
            mass[b] = sum;
            total += sum;
        }
        double left = (double)uniform[r] * total;
        long b = 0;
        while (b < blocks - 1 && left >= mass[b]) left -= mass[b++];
        long v = b * 256, end = v + 256 < vocabulary ? v + 256 : vocabulary, last = v;
        for (; v < end; v++) {
            float p = exp_((z[v] - top) * inverse);
            if (p > 0) last = v; /* rounding must not step past the last possible token */
            if (left < p) break;
            left -= p;
        }
        token[r] = v < end ? v : last;
        logprob[r] = (z[token[r]] - top) * inverse - (float)log(total);
        free(mass);
    }
}

#ifdef __AVX512BF16__
#include <immintrin.h>
#define COLUMNS 64 /* of a packed matrix's panel */
#define AT_ONCE 96 /* rows that pass over the panels together: few enough pages, many products */

long has_bf16_products(void) { return 1; }

/* Weight (n, k) float → bf16 panels of 64 rows: (n/64, k/2, 64, 2); n and k are padded with 0. */
void pack_weight(long n, long k, const float *weight, bf16 *packed) {
    long pairs = (k + 1) / 2, panels = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static)
    for (long b = 0; b < panels; b++) {
        bf16 rows[COLUMNS * 2 * pairs]; /* this panel before pairs of columns become rows */
        memset(rows, 0, sizeof(rows));
        for (long j = 0; j < COLUMNS && b * COLUMNS + j < n; j++)
            for (long x = 0; x < k; x++)
                rows[j * 2 * pairs + x] = to_bf16(weight[(b * COLUMNS + j) * k + x]);
        const int32_t *from = (const int32_t *)rows;
        int32_t *to = (int32_t *)packed + b * pairs * COLUMNS;
        for (long x = 0; x < pairs; x++)
            for (long j = 0; j < COLUMNS; j++) to[x * COLUMNS + j] = from[j * pairs + x];
    }
}

static inline __attribute__((always_inline)) void bf16_tile(const int m, long pairs,
                                                            const bf16 *a, long a_row,
                                                            const bf16 *panel, void *out, long at,
                                                            long row, long columns, int narrow) {
    __m512 sum[6][4];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = _mm512_setzero_ps();
    for (long x = 0; x < pairs; x++) {
        __m512bh right[4];
        for (int j = 0; j < 4; j++)
            right[j] = (__m512bh)_mm512_loadu_si512(panel + (x * COLUMNS + 16 * j) * 2);
        for (int i = 0; i < m; i++) {
            int32_t pair;
            memcpy(&pair, a + i * a_row + 2 * x, 4);
            __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < 4; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < 4 && 16 * j < columns; j++) {
            long n = columns - 16 * j, to = at + i * row + 16 * j;
            __mmask16 mask = n >= 16 ? 0xffff : (1u << n) - 1;
            if (narrow)
                _mm256_mask_storeu_epi16((bf16 *)out + to, mask,
                                         (__m256i)_mm512_cvtneps_pbh(sum[i][j]));
            else
                _mm512_mask_storeu_ps((float *)out + to, mask, sum[i][j]);
        }
}

#define BF16_TILE(M) bf16_tile(M, pairs, x + i * k, k, panel, out, i *n + b *COLUMNS, n, columns, narrow)

/* out (rows, n) = x (rows, k) · weightᵀ, with bf16 factors and float sums; k is even. `out` is
   bf16 where `narrow`, else float. A row's result does not depend on the other rows. */
void packed_linear(long rows, long n, long k, const bf16 *x, const bf16 *packed, void *out,
                   long narrow) {
    long pairs = k / 2, panels = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static) collapse(2)
    for (long first = 0; first < rows; first += AT_ONCE)
        for (long b = 0; b < panels; b++) {
            const bf16 *panel = packed + b * pairs * COLUMNS * 2;
            long columns = n - b * COLUMNS < COLUMNS ? n - b * COLUMNS : COLUMNS;
            long last = first + AT_ONCE < rows ? first + AT_ONCE : rows;
            for (long i = first; i < last; i += 6) switch (last - i) {
                    case 1: BF16_TILE(1); break;
                    case 2: BF16_TILE(2); break;
                    case 3: BF16_TILE(3); break;
                    case 4: BF16_TILE(4); break;
                    case 5: BF16_TILE(5); break;
                    default: BF16_TILE(6);
                }
        }
}
#else
long has_bf16_products(void) { return 0; }
#endif
