/* 3x3 convolutions with stride 2, with 9/16 of the multiplications, for AVX-512 BF16 (AMD from Zen 4 on).
 *
 * Along one side, let odd[i] = x[2 i - 1] and even[i] = x[2 i]. Then
 *
 *     y[i] = w0 odd[i] + w2 odd[i + 1] + w1 even[i]
 *
 * The first two terms are a convolution with stride 1 and two weights. Winograd's F(4, 2) computes four of
 * its results from five odd pixels with five multiplications instead of eight: it transforms the pixels and
 * the weights into five points and the products back. Only the third term multiplies pixels themselves, four
 * of them, all by w1. So nine pixels become nine values, of which five belong to points 0 to 4 and four to
 * point 5. In two dimensions, 81 values give 4x4 results, for which a direct convolution multiplies 144
 * times. They belong to 36 points: one value, four or sixteen of a tile per point. First, the inputs of every
 * tile are transformed. Then 36 matrix products multiply the values of each point by its transformed weights.
 * Finally, the products are transformed back.
 *
 * The gradients are computed by the same values. For that of x,
 *
 *     d even[i] = w1 g[i],   d odd[i + 1] = w2 g[i] + w0 g[i + 1]
 *
 * The interpolation points are +-3/8, +-5/4 and infinity. With bfloat16 factors, the result has an error of
 * 0.6 % (root mean square). winograd_constants.py derives the matrices. If a side of the results is not a
 * multiple of 4, the last tiles reach beyond it, where pixels are zeros and results are not stored. */
#include "memory.h"
#include "winograd.h"

#include <omp.h>
#include <string.h>

#define A1 0.375f
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define B1 1.25f
#define B2 (B1 * B1)
#define B3 (B2 * B1)

enum { SIDE = 9, VALUES = SIDE * SIDE }; /* values per tile, along a side and in all */
enum { TILES = 32, WIDE = 64 };          /* tiles and output channels at a time */
enum { CHUNK = 32 };                     /* pairs of tiles at a time for the weight gradient */

/* The values of a tile that belong to a point along a side, and to point p of 36. */
static inline int values_along_side(int point) { return point < 5 ? 1 : 4; }
static inline int values_of(int p) { return values_along_side(p / 6) * values_along_side(p % 6); }

/* The values of a tile that belong to the points before point p. */
static inline int values_before(int p) { return p / 6 * SIDE + values_along_side(p / 6) * (p % 6); }

/* The point to which value n belongs. */
static inline int point_of(int n) {
    const int i = n / SIDE, j = n % SIDE;
    return (i < 5 ? i : 5) * 6 + (j < 5 ? j : 5);
}

/* Where value n of tile number t is stored: each point has the rows of its values, tile by tile. Rows are
 * `row` apart, points `point` per value of a tile. */
static inline size_t offset_of(int n, int t, size_t point, size_t row) {
    const int p = point_of(n), i = n / SIDE, j = n % SIDE;
    const int place = (i < 5 ? 0 : i - 5) * values_along_side(p % 6) + (j < 5 ? 0 : j - 5);
    return values_before(p) * point + (values_of(p) * t + place) * row;
}

/* Transforms five pixels of one parity into points: B^T in winograd_constants.py. */
INLINE void pixel_points(const __m512 *d, int from, __m512 *t, int to) {
    const __m512 d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from];
    const __m512 ea = plus_times(d3, d1, -B2), oa = times(plus_times(d2, d0, -B2), A1);
    const __m512 eb = plus_times(d3, d1, -A2), ob = times(plus_times(d2, d0, -A2), B1);
    t[0] = _mm512_add_ps(ea, oa);
    t[to] = _mm512_sub_ps(ea, oa);
    t[2 * to] = _mm512_add_ps(eb, ob);
    t[3 * to] = _mm512_sub_ps(eb, ob);
    t[4 * to] = plus_times(plus_times(d4, d2, -A2 - B2), d0, A2 * B2);
}

/* Transforms five points into four results: A^T. */
INLINE void point_results(const __m512 *m, int from, __m512 *y, int to) {
    const __m512 pa = _mm512_add_ps(m[0], m[from]), ma = _mm512_sub_ps(m[0], m[from]);
    const __m512 pb = _mm512_add_ps(m[2 * from], m[3 * from]), mb = _mm512_sub_ps(m[2 * from], m[3 * from]);
    y[0] = _mm512_add_ps(pa, pb);
    y[to] = plus_times(times(mb, B1), ma, A1);
    y[2 * to] = plus_times(times(pb, B2), pa, A2);
    y[3 * to] = plus_times(plus_times(m[4 * from], mb, B3), ma, A3);
}

/* Transforms nine pixels of x, which begin at an odd one, into values. */
INLINE void input_values(const __m512 *d, int from, __m512 *t, int to) {
    pixel_points(d, 2 * from, t, to);
    for (int i = 0; i < 4; i++) t[(5 + i) * to] = d[(2 * i + 1) * from];
}

/* Transforms products of values into four results. */
INLINE void results(const __m512 *m, int from, __m512 *y, int to) {
    point_results(m, from, y, to);
    for (int i = 0; i < 4; i++) y[i * to] = _mm512_add_ps(y[i * to], m[(5 + i) * from]);
}

/* Transforms five gradients of results into values, for the gradient of x. */
INLINE void gradient_values(const __m512 *d, int from, __m512 *t, int to) {
    pixel_points(d, from, t, to);
    for (int i = 0; i < 4; i++) t[(5 + i) * to] = d[i * from];
}

/* Transforms products of values into gradients of eight pixels, which begin at an even one. */
INLINE void input_gradients(const __m512 *m, int from, __m512 *y, int to) {
    for (int i = 0; i < 4; i++) y[2 * i * to] = m[(5 + i) * from];
    point_results(m, from, y + to, 2 * to);
}

/* Transforms four gradients of results into gradients of values: the transpose of `results`. */
INLINE void result_values(const __m512 *g, int from, __m512 *t, int to) {
    const __m512 g0 = g[0], g1 = g[from], g2 = g[2 * from], g3 = g[3 * from];
    const __m512 ea = plus_times(g0, g2, A2), eb = plus_times(g0, g2, B2);
    const __m512 oa = plus_times(times(g1, A1), g3, A3), ob = plus_times(times(g1, B1), g3, B3);
    t[0] = _mm512_add_ps(ea, oa);
    t[to] = _mm512_sub_ps(ea, oa);
    t[2 * to] = _mm512_add_ps(eb, ob);
    t[3 * to] = _mm512_sub_ps(eb, ob);
    t[4 * to] = g3;
    for (int i = 0; i < 4; i++) t[(5 + i) * to] = g[i * from];
}

/* 1 / the product of a point's distances to the other finite points. */
#define FA (1 / (2 * A1 * (A2 - B2)))
#define FB (1 / (2 * B1 * (B2 - A2)))

/* Transforms three weights into six points: G, and the middle weight itself. */
INLINE void weight_points(const __m512 *w, int from, __m512 *t, int to) {
    const __m512 w0 = w[0], w2 = w[2 * from];
    t[0] = plus_times(times(w0, FA), w2, A1 * FA);
    t[to] = plus_times(times(w0, -FA), w2, A1 * FA);
    t[2 * to] = plus_times(times(w0, FB), w2, B1 * FB);
    t[3 * to] = plus_times(times(w0, -FB), w2, B1 * FB);
    t[4 * to] = w2;
    t[5 * to] = w[from];
}

/* Transforms gradients of six points into gradients of three weights: the transpose of `weight_points`. */
INLINE void weight_gradients(const __m512 *t, int from, __m512 *w, int to) {
    const __m512 pa = _mm512_add_ps(t[0], t[from]), ma = _mm512_sub_ps(t[0], t[from]);
    const __m512 pb = _mm512_add_ps(t[2 * from], t[3 * from]), mb = _mm512_sub_ps(t[2 * from], t[3 * from]);
    w[0] = plus_times(times(ma, FA), mb, FB);
    w[to] = t[5 * from];
    w[2 * to] = plus_times(plus_times(t[4 * from], pa, A1 * FA), pb, B1 * FB);
}

/* Values [N, height, width, C]. */
typedef struct {
    const bf16 *values;
    int height, width, channels;
} Pictures;

/* A picture's results in tiles of 4x4. */
typedef struct {
    int down, across;
} Map;

static inline Map map_of(int height, int width) { return (Map){(height + 3) / 4, (width + 3) / 4}; }

typedef struct {
    int picture, i, j;
} Tile;

static inline Tile tile_of(Map map, int picture, int place) {
    return (Tile){picture, place / map.across, place % map.across};
}

/* Finds `side` x `side` pixels from (top, left) on; zeros outside the picture. */
static inline void find_pixels(Pictures from, int picture, int top, int left, int side, const bf16 **pixels) {
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            const unsigned row = top + i, column = left + j; /* a negative one becomes huge */
            const int inside = row < (unsigned)from.height && column < (unsigned)from.width;
            const size_t at = ((size_t)picture * from.height + row) * from.width + column;
            pixels[SIDE * i + j] = inside ? from.values + at * from.channels : zero_pixel;
        }
}

/* What is transformed into values: the inputs, gradients of results for the gradient of the inputs, and for
 * that of the weights. */
enum { INPUTS, GRADIENTS, RESULTS };

/* The pixels along a side of a tile. */
static inline int pixels_along(int kind) { return kind == INPUTS ? 9 : kind == GRADIENTS ? 5 : 4; }

static inline void find_tile(int kind, Pictures from, Tile tile, const bf16 **pixels) {
    const int step = kind == INPUTS ? 8 : 4, border = kind == INPUTS;
    find_pixels(from, tile.picture, step * tile.i - border, step * tile.j - border, pixels_along(kind),
                pixels);
}

INLINE void values_along(int kind, const __m512 *d, int from, __m512 *t, int to) {
    if (kind == INPUTS)
        input_values(d, from, t, to);
    else if (kind == GRADIENTS)
        gradient_values(d, from, t, to);
    else
        result_values(d, from, t, to);
}

/* Transforms 16 channels of a tile, from `channel` on, into values [9][9]. */
INLINE void transform_tile(int kind, const bf16 *const *pixels, int channel, __mmask16 mask, __m512 *values) {
    __m512 half[VALUES], column[SIDE];
    const int side = pixels_along(kind);
    for (int j = 0; j < side; j++) {
        for (int i = 0; i < side; i++) column[i] = load_bf16(mask, pixels[SIDE * i + j] + channel);
        values_along(kind, column, 1, half + j, SIDE);
    }
    for (int i = 0; i < SIDE; i++) values_along(kind, half + SIDE * i, 1, values + SIDE * i, 1);
}

/* Stores values as bfloat16, number n at to[n] + channel. */
NOT_INLINE void store_values(int kind, const bf16 *const *pixels, int channel, __mmask16 mask,
                             bf16 *const *to) {
    __m512 values[VALUES];
    if (kind == INPUTS)
        transform_tile(INPUTS, pixels, channel, mask, values);
    else
        transform_tile(GRADIENTS, pixels, channel, mask, values);
    for (int n = 0; n < VALUES; n++)
        _mm256_store_si256((__m256i *)(to[n] + channel), (__m256i)_mm512_cvtneps_pbh(values[n]));
}

/* Transforms 16 channels of products, number n at products[n] + channel, into result [side][side]. */
INLINE void transform_back(Line *back, int side, const float *const *products, int channel, __m512 *result) {
    __m512 half[8 * SIDE], column[SIDE];
    for (int j = 0; j < SIDE; j++) {
        for (int i = 0; i < SIDE; i++) column[i] = _mm512_load_ps(products[SIDE * i + j] + channel);
        back(column, 1, half + j, SIDE);
    }
    for (int i = 0; i < side; i++) back(half + SIDE * i, 1, result + side * i, 1);
}

static void transform_weights(const float *w, bf16 *u, int inputs, int outputs, int flip, int threads) {
    const int pairs = rounded_up(inputs, 16) / 2, blocks = rounded_up(outputs, 32) / 16;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int b = 0; b < blocks; b++)
        for (int pair = 0; pair < pairs; pair++)
            transform_weights_of(weight_points, w, u, inputs, outputs, b, pair, flip);
}

/* What all threads need to know about a convolution. */
typedef struct {
    Pictures from, to;
    Map map;
    int kind;                  /* INPUTS, or GRADIENTS for the gradient of x */
    const bf16 *u;             /* the transformed weights */
    bf16 *y;                   /* the values of `to` */
    int inputs, outputs, wide; /* channels rounded up; output channels at a time */
    size_t v_point, m_point;   /* distances between the points in v and m, per value of a tile */
} Convolution;

/* Transforms 16 channels of a tile's products back, and stores those that are in the picture. */
NOT_INLINE void store_results(const Convolution *job, Tile tile, const float *const *products, int from,
                              int channel) {
    const Pictures to = job->to;
    const __mmask16 mask = channel_mask(channel, to.channels);
    const int side = job->kind == INPUTS ? 4 : 8;
    __m512 result[64];
    if (job->kind == INPUTS)
        transform_back(results, 4, products, from, result);
    else
        transform_back(input_gradients, 8, products, from, result);
    for (int i = 0; i < side && side * tile.i + i < to.height; i++)
        for (int j = 0; j < side && side * tile.j + j < to.width; j++) {
            const size_t row = (size_t)tile.picture * to.height + side * tile.i + i;
            _mm256_mask_storeu_epi16(job->y + (row * to.width + side * tile.j + j) * to.channels + channel,
                                     mask, (__m256i)_mm512_cvtneps_pbh(result[side * i + j]));
        }
}

/* Convolves `count` tiles, from number `first` on. v and m are this thread's scratch memory. */
static void convolve_tiles(const Convolution *job, long first, int count, bf16 *v, float *m) {
    const int places = job->map.down * job->map.across, inputs = job->inputs, wide = job->wide;
    Tile tiles[TILES];
    for (int t = 0; t < count; t++) {
        const bf16 *pixels[VALUES];
        bf16 *to[VALUES];
        tiles[t] = tile_of(job->map, (first + t) / places, (first + t) % places);
        find_tile(job->kind, job->from, tiles[t], pixels);
        for (int n = 0; n < VALUES; n++) to[n] = v + offset_of(n, t, job->v_point, inputs);
        for (int c = 0; c < inputs; c += 16)
            store_values(job->kind, pixels, c, channel_mask(c, job->from.channels), to);
    }
    for (int o = 0; o < job->outputs; o += wide) {
        for (int p = 0; p < POINTS; p++)
            for (int c = 0; c < wide; c += 32) {
                const bf16 *a = v + values_before(p) * job->v_point;
                const bf16 *b = job->u + ((size_t)p * job->outputs + o + c) * inputs;
                float *product = m + values_before(p) * job->m_point + c;
                for (int row = 0; row < values_of(p) * count;
                     row += ROWS) /* those past the end are ignored */
                    multiply(product + row * wide, wide, (const int32_t *)(a + row * inputs), inputs / 2, 1,
                             b, b + 16 * inputs, inputs / 2, 0);
            }
        for (int t = 0; t < count; t++) {
            const float *products[VALUES];
            for (int n = 0; n < VALUES; n++) products[n] = m + offset_of(n, t, job->m_point, wide);
            for (int c = 0; c < wide && o + c < job->to.channels; c += 16)
                store_results(job, tiles[t], products, c, o + c);
        }
    }
}

/* Convolves x [N, H, W, CI] with w [CI, 3, 3, CO], float32, with padding 1 and stride 2, and writes the
 * result to y [N, (H + 1) / 2, (W + 1) / 2, CO]. If `transposed`, computes the gradient of x instead: x is
 * that of the result, [N, (H + 1) / 2, (W + 1) / 2, CI], and y that of the input, [N, H, W, CO]. Returns DONE
 * or NO_MEMORY. */
int strided(const bf16 *x, const float *w, bf16 *y, int N, int H, int W, int CI, int CO, int transposed,
            int threads) {
    const int height = (H + 1) / 2, width = (W + 1) / 2;
    Convolution job = {.kind = transposed ? GRADIENTS : INPUTS, .map = map_of(height, width), .y = y};
    job.from = transposed ? (Pictures){x, height, width, CI} : (Pictures){x, H, W, CI};
    job.to = transposed ? (Pictures){y, H, W, CO} : (Pictures){y, height, width, CO};
    job.inputs = rounded_up(CI, 16);
    job.outputs = rounded_up(CO, 32);
    job.wide = job.outputs % WIDE ? 32 : WIDE;
    /* A cache line more than a power of two. Otherwise all points would share one set of the cache. */
    job.v_point = TILES * job.inputs + 32;
    job.m_point = TILES * job.wide + 16;
    const size_t v_size = VALUES * job.v_point, m_size = VALUES * job.m_point;
    bf16 *u = allocate(sizeof(bf16) * POINTS * job.inputs * job.outputs);
    bf16 *vs = allocate(sizeof(bf16) * v_size * threads);
    float *ms = allocate(sizeof(float) * m_size * threads);
    const int ready = u && vs && ms;
    if (ready) {
        job.u = u;
        transform_weights(w, u, CI, CO, transposed, threads);
        const long tiles = (long)N * job.map.down * job.map.across;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long first = 0; first < tiles; first += TILES) {
            const int thread = omp_get_thread_num(), count = tiles - first < TILES ? tiles - first : TILES;
            convolve_tiles(&job, first, count, vs + v_size * thread, ms + m_size * thread);
        }
    }
    free(u);
    free(vs);
    free(ms);
    return ready ? DONE : NO_MEMORY;
}

/* What all threads need to know about a weight gradient. */
typedef struct {
    Pictures x, g;
    Map map;
    int N;
    Division division;
    size_t v_point, z_point; /* distances between neighbouring points, per value, in v and z */
} WeightGradient;

/* Transforms 16 channels of two tiles, and stores pairs of their values: number n at to[n]. */
NOT_INLINE void store_pairs(int kind, const bf16 *pixels[2][VALUES], int channel, const __mmask16 *masks,
                            bf16 *const *to) {
    __m512 values[2][VALUES];
    for (int s = 0; s < 2; s++)
        if (kind == INPUTS)
            transform_tile(INPUTS, pixels[s], channel, masks[s], values[s]);
        else
            transform_tile(RESULTS, pixels[s], channel, masks[s], values[s]);
    for (int n = 0; n < VALUES; n++) _mm512_store_si512(to[n], side_by_side(values[0][n], values[1][n]));
}

/* Transforms channels `begin` to `end` of pair number k of a chunk: a tile, and that in the same place of the
 * next picture. If there is no next picture, its values are zeros. v is [16 channels][pair of values][16][2]
 * per point. */
static void transform_pair(int kind, Pictures pictures, int N, int begin, int end, Tile tile, int k, bf16 *v,
                           size_t v_point) {
    const bf16 *pixels[2][VALUES];
    bf16 *to[VALUES];
    const int two = tile.picture + 1 < N;
    Tile next = tile;
    next.picture += two;
    find_tile(kind, pictures, tile, pixels[0]);
    find_tile(kind, pictures, next, pixels[1]);
    for (int n = 0; n < VALUES; n++) to[n] = v + offset_of(n, k, v_point, 32);
    for (int c = begin; c < end; c += 16) {
        const __mmask16 mask = channel_mask(c, pictures.channels);
        store_pairs(kind, pixels, c, (__mmask16[]){mask, two ? mask : 0}, to);
        for (int n = 0; n < VALUES; n++) to[n] += 32 * CHUNK * values_of(point_of(n));
    }
}

/* Computes one thread's sums over its pictures for its outputs. */
static void sum_part(const WeightGradient *job, int part, bf16 *v, bf16 *z, float *sum) {
    const Division *division = &job->division;
    const int places = job->map.down * job->map.across, share = part % division->shares,
              group = part / division->shares;
    const int inputs = division->inputs, mine = division->mine;
    const long pairs = (job->N + 1L) / 2 * places;
    const long begin = pairs * group / division->groups, end = pairs * (group + 1) / division->groups;
    if (begin == end) memset(sum, 0, sizeof(float) * POINTS * division->point);
    for (long first = begin; first < end; first += CHUNK) {
        const int count = end - first < CHUNK ? end - first : CHUNK;
        for (int k = 0; k < count; k++) {
            const Tile tile = tile_of(job->map, (first + k) / places * 2, (first + k) % places);
            transform_pair(INPUTS, job->x, job->N, 0, inputs, tile, k, v, job->v_point);
            transform_pair(RESULTS, job->g, job->N, share * mine, (share + 1) * mine, tile, k, z,
                           job->z_point);
        }
        for (int p = 0; p < POINTS; p++) {
            const int slots = values_of(p), before = values_before(p);
            const size_t along = (size_t)slots * CHUNK; /* pairs of values per 16 channels */
            for (int i = 0; i < inputs; i += 32) {
                const bf16 *b = v + before * job->v_point + 2 * i * along;
                for (int o = 0; o < mine; o += ROWS)
                    multiply(sum + p * division->point + (size_t)i * mine + 32 * o, 32,
                             (const int32_t *)(z + before * job->z_point + 2 * (o / 16 * 16) * along) +
                                 o % 16,
                             1, 16, b, b + 32 * along, slots * count, first > begin);
            }
        }
    }
}

/* Computes dw [CO, 3, 3, CI], the gradient of `strided` with respect to w, from x [N, H, W, CI] and g
 * [N, (H + 1) / 2, (W + 1) / 2, CO]. The matrix products sum over pairs of values in the same place of two
 * pictures. Threads divide the work as in winograd.c. Returns DONE or NO_MEMORY. */
int strided_weight_gradient(const bf16 *x, const bf16 *g, float *dw, int N, int H, int W, int CI, int CO,
                            int threads) {
    const int height = (H + 1) / 2, width = (W + 1) / 2;
    WeightGradient job = {.x = {x, H, W, CI},
                          .g = {g, height, width, CO},
                          .map = map_of(height, width),
                          .N = N,
                          .division = divide(CI, CO, threads)};
    const int inputs = job.division.inputs, mine = job.division.mine;
    job.v_point = 2 * CHUNK * inputs + 32;
    job.z_point = 2 * CHUNK * mine + 32;
    const size_t sum_size = POINTS * job.division.point, v_size = VALUES * job.v_point,
                 z_size = VALUES * job.z_point;
    float *sums = allocate(sizeof(float) * sum_size * threads);
    bf16 *vs = allocate(sizeof(bf16) * v_size * threads), *zs = allocate(sizeof(bf16) * z_size * threads);
    const int ready = sums && vs && zs;
    if (ready) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int part = 0; part < threads; part++)
            sum_part(&job, part, vs + v_size * part, zs + z_size * part, sums + sum_size * part);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int o = 0; o < CO; o++) finish_gradient(weight_gradients, &job.division, sums, o, dw);
    }
    free(sums);
    free(vs);
    free(zs);
    return ready ? DONE : NO_MEMORY;
}
