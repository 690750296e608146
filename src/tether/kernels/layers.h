/* Kernels whose activations are of type T; compiled once with T = float and once with T = bf16.

   The residual stream, weights of norms and all sums are float32 whatever T is. Rows are tokens of
   all sequences one after the other, without padding; sequence s is rows offset[s] … offset[s+1].
*/

/* sum = x + delta (delta may be NULL: then sum is x and not written);  out = w · sum / rms(sum). */
void NAME(add_norm)(long rows, long d, const float *x, const T *delta, const float *w, float eps,
                    float *sum, T *out, float *rstd) {
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
    for (long r = 0; r < rows; r++) {
        const float *restrict s = x + r * d;
        float squares = 0;
        if (delta) {
            const T *restrict a = delta + r * d;
            float *restrict to = sum + r * d;
#pragma omp simd reduction(+ : squares)
            for (long i = 0; i < d; i++) {
                float v = s[i] + LOAD(a[i]);
                to[i] = v;
                squares += v * v;
            }
            s = to;
        } else {
#pragma omp simd reduction(+ : squares)
            for (long i = 0; i < d; i++) squares += s[i] * s[i];
        }
        float scale = 1.0f / sqrtf(squares / d + eps);
        T *restrict o = out + r * d;
        rstd[r] = scale;
#pragma omp simd
        for (long i = 0; i < d; i++) o[i] = STORE(s[i] * scale * w[i]);
    }
}

/* Gradients of add_norm; grad_sum and grad_delta may be NULL. grad_w has `blocks` rows to add up:
   a fixed number, so that the result does not depend on the number of threads. */
void NAME(add_norm_backward)(long rows, long d, long blocks, const float *sum, const float *w,
                             const float *rstd, const T *grad_out, const float *grad_sum,
                             float *grad_x, T *grad_delta, float *grad_w) {
    long size = (rows + blocks - 1) / blocks;
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
    for (long b = 0; b < blocks; b++) {
        float *restrict gw = grad_w + b * d;
        long end = (b + 1) * size < rows ? (b + 1) * size : rows;
        for (long r = b * size; r < end; r++) {
            const float *restrict s = sum + r * d;
            const T *restrict g = grad_out + r * d;
            float *restrict gx = grad_x + r * d;
            float scale = rstd[r], dot = 0;
#pragma omp simd reduction(+ : dot)
            for (long i = 0; i < d; i++) {
                float unit = s[i] * scale, up = LOAD(g[i]);
                gw[i] += up * unit;
                dot += up * w[i] * unit;
            }
            dot /= d;
#pragma omp simd
            for (long i = 0; i < d; i++)
                gx[i] = scale * (LOAD(g[i]) * w[i] - s[i] * scale * dot);
            if (grad_sum) {
                const float *restrict gs = grad_sum + r * d;
#pragma omp simd
                for (long i = 0; i < d; i++) gx[i] += gs[i];
            }
            if (grad_delta) {
                T *restrict gd = grad_delta + r * d;
#pragma omp simd
                for (long i = 0; i < d; i++) gd[i] = STORE(gx[i]);
            }
        }
    }
}

/* out = silu(gate) · up, with [gate, up] side by side in each row of `both`. */
void NAME(swiglu)(long rows, long d, const T *both, T *out) {
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
    for (long r = 0; r < rows; r++) {
        const T *restrict g = both + 2 * r * d, *restrict u = g + d;
        T *restrict o = out + r * d;
#pragma omp simd
        for (long i = 0; i < d; i++) {
            float x = LOAD(g[i]);
            o[i] = STORE(x / (1.0f + exp_(-x)) * LOAD(u[i]));
        }
    }
}

void NAME(swiglu_backward)(long rows, long d, const T *both, const T *grad_out, T *grad) {
#pragma omp parallel for schedule(static) if (rows * d > SMALL)
    for (long r = 0; r < rows; r++) {
        const T *restrict g = both + 2 * r * d, *restrict u = g + d;
        const T *restrict go = grad_out + r * d;
        T *restrict gg = grad + 2 * r * d, *restrict gu = gg + d;
#pragma omp simd
        for (long i = 0; i < d; i++) {
            float x = LOAD(g[i]), up = LOAD(go[i]);
            float gate = 1.0f / (1.0f + exp_(-x));
            gu[i] = STORE(up * x * gate);
            gg[i] = STORE(up * LOAD(u[i]) * gate * (1.0f + x * (1.0f - gate)));
        }
    }
}

/* One head of one token: x rotated by its position and times `scale`; cos = NULL: not rotated.
   The other half of the head is half further on, as transformers lays it out. */
static inline void NAME(rotate)(long d, const T *restrict x, const float *restrict cos,
                                const float *restrict sin, float scale, float *restrict out) {
    long half = d / 2;
    if (!cos) {
        for (long i = 0; i < d; i++) out[i] = scale * LOAD(x[i]);
        return;
    }
#pragma omp simd
    for (long i = 0; i < half; i++) {
        float a = LOAD(x[i]), b = LOAD(x[i + half]);
        out[i] = scale * (a * cos[i] - b * sin[i]);
        out[i + half] = scale * (b * cos[i] + a * sin[i]);
    }
}

/* The transpose of rotate: from the gradient of the rotated head to that of the head. */
static inline void NAME(rotate_back)(long d, const float *restrict g, const float *restrict cos,
                                     const float *restrict sin, float scale, T *restrict out) {
    long half = d / 2;
    if (!cos) {
        for (long i = 0; i < d; i++) out[i] = STORE(scale * g[i]);
        return;
    }
#pragma omp simd
    for (long i = 0; i < half; i++) {
        float a = g[i], b = g[i + half];
        out[i] = STORE(scale * (a * cos[i] + b * sin[i]));
        out[i + half] = STORE(scale * (b * cos[i] - a * sin[i]));
    }
}

/* Causal self-attention with rotary positions over sequences of any length. Rotated keys are
   rounded to T, as the cache of decoding holds them.

   qkv: (rows, (heads + 2·kv_heads)·d), cos and sin: (positions, d/2), out: (rows, heads·d),
   lse: (rows, heads) log of each softmax's denominator, for the backward pass. */
void NAME(attention)(long sequences, const int64_t *offset, long heads, long kv_heads, long d,
                     const T *qkv, const float *cos, const float *sin, T *out, float *lse) {
    long group = heads / kv_heads, width = (heads + 2 * kv_heads) * d, dp = PADDED(d);
    float scale = 1.0f / sqrtf((float)d);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long s = 0; s < sequences; s++)
        for (long kv = 0; kv < kv_heads; kv++) {
            long start = offset[s], len = offset[s + 1] - start, lp = PADDED(len);
            float *kt = zeros(dp * lp), *v = zeros(len * dp), *scores = floats(BLOCK * lp);
            float *q = floats(BLOCK * dp), *o = floats(BLOCK * dp), *row = floats(dp);
            for (long j = 0; j < len; j++) {
                const T *at = qkv + (start + j) * width + (heads + kv) * d;
                const float *c = cos ? cos + j * (d / 2) : NULL;
                NAME(rotate)(d, at, c, sin + j * (d / 2), 1.0f, row);
                for (long i = 0; i < d; i++) kt[i * lp + j] = LOAD(STORE(row[i]));
                at += kv_heads * d;
                for (long i = 0; i < d; i++) v[j * dp + i] = LOAD(at[i]);
            }
            for (long h = kv * group; h < (kv + 1) * group; h++)
                for (long first = 0; first < len; first += BLOCK) {
                    long n = len - first < BLOCK ? len - first : BLOCK, keys = PADDED(first + n);
                    for (long i = 0; i < n; i++) {
                        long p = first + i;
                        const float *c = cos ? cos + p * (d / 2) : NULL;
                        NAME(rotate)(d, qkv + (start + p) * width + h * d, c, sin + p * (d / 2),
                                     scale, q + i * dp);
                    }
                    gemm(n, keys, d, q, dp, 1, kt, lp, scores, lp, 0);
                    for (long i = 0; i < n; i++) {
                        float *p = scores + i * lp;
                        float total = softmax_terms(first + i + 1, keys, p);
                        lse[(start + first + i) * heads + h] = total;
                    }
                    gemm(n, dp, first + n, scores, lp, 1, v, dp, o, dp, 0);
                    for (long i = 0; i < n; i++) {
                        T *to = out + (start + first + i) * heads * d + h * d;
                        for (long e = 0; e < d; e++) to[e] = STORE(o[i * dp + e]);
                    }
                }
            free(kt), free(v), free(scores), free(q), free(o), free(row);
        }
}

void NAME(attention_backward)(long sequences, const int64_t *offset, long heads, long kv_heads,
                              long d, const T *qkv, const float *cos, const float *sin,
                              const T *out, const float *lse, const T *grad_out, T *grad) {
    long group = heads / kv_heads, width = (heads + 2 * kv_heads) * d, dp = PADDED(d);
    float scale = 1.0f / sqrtf((float)d);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (long s = 0; s < sequences; s++)
        for (long kv = 0; kv < kv_heads; kv++) {
            long start = offset[s], len = offset[s + 1] - start, lp = PADDED(len);
            float *k = zeros(len * dp), *kt = zeros(dp * lp), *vt = zeros(dp * lp);
            float *gk = zeros(len * dp), *gv = zeros(len * dp);
            float *q = zeros(BLOCK * dp), *go = zeros(BLOCK * dp), *gq = floats(BLOCK * dp);
            float *p = floats(BLOCK * lp), *gp = floats(BLOCK * lp);
            for (long j = 0; j < len; j++) {
                const T *at = qkv + (start + j) * width + (heads + kv) * d;
                const float *c = cos ? cos + j * (d / 2) : NULL;
                NAME(rotate)(d, at, c, sin + j * (d / 2), 1.0f, k + j * dp);
                at += kv_heads * d;
                for (long i = 0; i < d; i++) {
                    kt[i * lp + j] = k[j * dp + i] = LOAD(STORE(k[j * dp + i]));
                    vt[i * lp + j] = LOAD(at[i]);
                }
            }
            for (long h = kv * group; h < (kv + 1) * group; h++)
                for (long first = 0; first < len; first += BLOCK) {
                    long n = len - first < BLOCK ? len - first : BLOCK, keys = PADDED(first + n);
                    for (long i = 0; i < n; i++) {
                        long at = first + i, token = start + at;
                        const float *c = cos ? cos + at * (d / 2) : NULL;
                        NAME(rotate)(d, qkv + token * width + h * d, c, sin + at * (d / 2), scale,
                                     q + i * dp);
                        const T *g = grad_out + (token * heads + h) * d;
#pragma omp simd
                        for (long e = 0; e < d; e++) go[i * dp + e] = LOAD(g[e]);
                    }
                    gemm(n, keys, d, q, dp, 1, kt, lp, p, lp, 0);
                    gemm(n, keys, d, go, dp, 1, vt, lp, gp, lp, 0);
                    for (long i = 0; i < n; i++) {
                        long token = start + first + i;
                        const T *o = out + (token * heads + h) * d;
                        float along = 0;
#pragma omp simd reduction(+ : along)
                        for (long e = 0; e < d; e++) along += LOAD(o[e]) * go[i * dp + e];
                        softmax_gradient(first + i + 1, keys, lse[token * heads + h], along,
                                         p + i * lp, gp + i * lp);
                    }
                    gemm(n, dp, first + n, gp, lp, 1, k, dp, gq, dp, 0);
                    gemm(first + n, dp, n, gp, 1, lp, q, dp, gk, dp, 1);
                    gemm(first + n, dp, n, p, 1, lp, go, dp, gv, dp, 1);
                    for (long i = 0; i < n; i++) {
                        long at = first + i;
                        const float *c = cos ? cos + at * (d / 2) : NULL;
                        NAME(rotate_back)(d, gq + i * dp, c, sin + at * (d / 2), scale,
                                          grad + (start + at) * width + h * d);
                    }
                }
            for (long j = 0; j < len; j++) {
                T *to = grad + (start + j) * width + (heads + kv) * d;
                const float *c = cos ? cos + j * (d / 2) : NULL;
                NAME(rotate_back)(d, gk + j * dp, c, sin + j * (d / 2), 1.0f, to);
                to += kv_heads * d;
                for (long i = 0; i < d; i++) to[i] = STORE(gv[j * dp + i]);
            }
            free(k), free(kt), free(vt), free(gk), free(gv);
            free(q), free(go), free(gq), free(p), free(gp);
        }
}

/* Keys and values of `rows` tokens into the cache: token r goes to position[r] of slot[r].

   The cache holds keys as (slots, kv_heads, d, room), so that the scores of many positions are
   one sweep, and values as (slots, kv_heads, room, d). Keys are stored rotated. */
void NAME(cache_write)(long rows, const int64_t *slot, const int64_t *position, long heads,
                       long kv_heads, long d, long room, const T *qkv, const float *cos,
                       const float *sin, T *keys, T *values) {
    long width = (heads + 2 * kv_heads) * d;
#pragma omp parallel for schedule(static) if (rows * kv_heads * d > SMALL)
    for (long r = 0; r < rows; r++) {
        long p = position[r];
        float row[d];
        for (long kv = 0; kv < kv_heads; kv++) {
            const T *at = qkv + r * width + (heads + kv) * d;
            NAME(rotate)(d, at, cos ? cos + p * (d / 2) : NULL, sin + p * (d / 2), 1.0f, row);
            T *k = keys + (slot[r] * kv_heads + kv) * d * room + p;
            for (long i = 0; i < d; i++) k[i * room] = STORE(row[i]);
            T *v = values + ((slot[r] * kv_heads + kv) * room + p) * d;
            memcpy(v, at + kv_heads * d, d * sizeof(T));
        }
    }
}

/* Scores of SWEEP cached positions, in registers; `room` is a multiple of SWEEP. */
static inline void NAME(sweep)(long d, const float *q, const T *keys, long room, float *scores) {
    vec sum[SWEEP / 16] = {{0}};
    for (long i = 0; i < d; i++)
        for (int e = 0; e < SWEEP / 16; e++) sum[e] += q[i] * LOAD16(keys + i * room + 16 * e);
    for (int e = 0; e < SWEEP / 16; e++) *(vec *)(scores + 16 * e) = sum[e];
}

/* out (16·nv numbers) = the weighted sum of cached values, in registers; nv is a constant. */
static inline __attribute__((always_inline)) void NAME(weigh)(const int nv, long seen,
                                                              const float *weights,
                                                              const T *values, float *out) {
    vec sum[8];
    for (int e = 0; e < nv; e++) sum[e] = (vec){0};
    for (long j = 0; j < seen; j++)
        for (int e = 0; e < nv; e++)
            sum[e] += weights[j] * LOAD16(values + j * 16 * nv + 16 * e);
    for (int e = 0; e < nv; e++) *(vec *)(out + 16 * e) = sum[e];
}

/* Attention of one new token a row over its slot of the cache, itself (already written) included.
   Row r is at position[r] of slot[r]. */
void NAME(decode_attention)(long rows, const int64_t *slot, const int64_t *position, long heads,
                            long kv_heads, long d, long room, const T *qkv, const float *cos,
                            const float *sin, const T *keys, const T *values, T *out) {
    long group = heads / kv_heads, width = (heads + 2 * kv_heads) * d;
    float scale = 1.0f / sqrtf((float)d);
#pragma omp parallel for schedule(dynamic) if (rows * heads * d > SMALL / 8)
    for (long r = 0; r < rows; r++) {
        long p = position[r], seen = p + 1;
        float q[d], *scores = zeros((seen + SWEEP - 1) / SWEEP * SWEEP), *o = zeros(PADDED(d));
        for (long h = 0; h < heads; h++) {
            const T *k = keys + (slot[r] * kv_heads + h / group) * d * room;
            const T *v = values + (slot[r] * kv_heads + h / group) * room * d;
            const float *c = cos ? cos + p * (d / 2) : NULL;
            NAME(rotate)(d, qkv + r * width + h * d, c, sin + p * (d / 2), scale, q);
            for (long j = 0; j < seen; j += SWEEP) NAME(sweep)(d, q, k + j, room, scores + j);
            softmax_terms(seen, PADDED(seen), scores);
            switch (d) {
                case 32: NAME(weigh)(2, seen, scores, v, o); break;
                case 48: NAME(weigh)(3, seen, scores, v, o); break;
                case 64: NAME(weigh)(4, seen, scores, v, o); break;
                case 128: NAME(weigh)(8, seen, scores, v, o); break;
                default:
                    memset(o, 0, d * sizeof(float));
                    for (long j = 0; j < seen; j++)
#pragma omp simd
                        for (long i = 0; i < d; i++) o[i] += scores[j] * LOAD(v[j * d + i]);
            }
            T *to = out + (r * heads + h) * d;
            for (long i = 0; i < d; i++) to[i] = STORE(o[i]);
        }
        free(scores), free(o);
    }
}
