/* 3x3 convolutions with a quarter of the multiplications, for AVX-512 BF16 (AMD from Zen 4 on).
 *
 * Winograd's F(4x4, 3x3) (Lavin & Gray 2016, https://arxiv.org/abs/1509.09308) computes 4x4 results from 6x6
 * inputs with 36 multiplications per pair of channels, where a direct convolution needs 144. Each picture's
 * map is divided into tiles of 4x4 results. First, the inputs of every tile are transformed into 36 points.
 * Then 36 matrix products, one per point, multiply all tiles by the transformed weights. Finally, the
 * products are transformed back. The interpolation points are 0, +-11/16, +-3/2 and infinity. With bfloat16
 * factors, the result has an error of 1.2 % (root mean square); with the usual points 0, +-1 and +-2, the
 * error is more than twice as large. winograd_constants.py derives the matrices.
 *
 * If a side is not a multiple of 4, the tiles at its end are 3 or 2 pixels high or wide and need 5 or 4
 * points: 7 = 4 + 3, 5 = 3 + 2. A tile of 3 omits the point -3/2, a tile of 2 also +3/2. All tiles use the
 * same transformed weights. These are divided by the distances to all points, so the input transform of a
 * smaller tile multiplies by the distances to the points that it omits. Each matrix product covers the tiles
 * that have its point. */
#include "winograd.h"
#include "memory.h"

#include <omp.h>
#include <string.h>

#define A1 0.6875f
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define B1 1.5f
#define B2 (B1 * B1)
#define B3 (B2 * B1)

enum { TILES = 32, WIDE = 64 }; /* tiles and output channels at a time; their products stay in the L2 cache */
enum { TRANSFORMED = 2 << 20 }; /* bytes per thread of the points transformed at a time for weights */

/* The size of a picture's map, in pixels and in tiles. */
typedef struct {
    int height, width, down, across;
} Map;

static inline Map map_of(int H, int W) { return (Map){H, W, (H + 3) / 4, (W + 3) / 4}; }

/* The first pixel of tile number i along a side. */
static inline int tile_start(int side, int i) {
    return side % 4 == 1 && side > 1 && i == side / 4 ? side - 2 : 4 * i;
}

/* The number of pixels of tile number i along a side. */
static inline int tile_size(int side, int i) {
    const int left = side - 4 * i;
    return left == 5 ? 3 : left == 1 ? 2 : left < 4 ? left : 4; /* a side of 1 is half a tile of 2 */
}

typedef struct {
    int picture, top, left, rows, columns;
} Tile;

static inline Tile tile_of(Map map, int picture, int place) {
    const int i = place / map.across, j = place % map.across;
    return (Tile){picture, tile_start(map.height, i), tile_start(map.width, j), tile_size(map.height, i),
                  tile_size(map.width, j)};
}

static inline int has_point(int size, int i) { return size == 4 || (i != 4 && (size == 3 || i != 3)); }

/* The points, out of 36, that a tile has. */
typedef struct {
    int count;
    uint8_t at[POINTS];
} Points;

static void list_points(Points lists[3][3]) {
    for (int rows = 2; rows <= 4; rows++)
        for (int columns = 2; columns <= 4; columns++) {
            Points *list = &lists[rows - 2][columns - 2];
            list->count = 0;
            for (int p = 0; p < POINTS; p++)
                if (has_point(rows, p / 6) && has_point(columns, p % 6)) list->at[list->count++] = p;
        }
}

/* call(size) with a constant size, so that the compiler can unroll it. */
#define BY_SIZE(size, call)                                                                                  \
    switch (size) {                                                                                          \
    case 4: call(4); break;                                                                                  \
    case 3: call(3); break;                                                                                  \
    default: call(2);                                                                                        \
    }

/* Transforms size + 2 inputs into size + 2 of the six points: B^T in winograd_constants.py. */
INLINE void input_points(int size, const __m512 *d, int from, __m512 *t, int to) {
    const __m512 d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from];
    if (size == 2) {
        const __m512 ea = times(d2, A2 - B2), oa = times(d1, A1 * (A2 - B2));
        t[0] = plus_times(times(d0, A2 * B2), d2, -B2);
        t[to] = _mm512_add_ps(ea, oa);
        t[2 * to] = _mm512_sub_ps(ea, oa);
        t[5 * to] = plus_times(d3, d1, -A2);
        return;
    }
    const __m512 d4 = d[4 * from];
    if (size == 3) {
        const __m512 e = plus_times(d3, d2, A1 - B1), o = plus_times(d3, d2, -A1 - B1);
        t[0] = plus_times(plus_times(plus_times(times(d0, A2 * B2), d1, -A2 * B1), d2, -B2), d3, B1);
        t[to] = times(plus_times(e, d1, -A1 * B1), B1 + A1);
        t[2 * to] = times(plus_times(o, d1, A1 * B1), B1 - A1);
        t[3 * to] = times(plus_times(d3, d1, -A2), 2 * B1);
        t[5 * to] = plus_times(plus_times(plus_times(d4, d3, -B1), d2, -A2), d1, A2 * B1);
        return;
    }
    const __m512 d5 = d[5 * from];
    const __m512 ea = plus_times(d4, d2, -B2), oa = times(plus_times(d3, d1, -B2), A1);
    const __m512 eb = plus_times(d4, d2, -A2), ob = times(plus_times(d3, d1, -A2), B1);
    t[0] = plus_times(plus_times(d4, d2, -A2 - B2), d0, A2 * B2);
    t[to] = _mm512_add_ps(ea, oa);
    t[2 * to] = _mm512_sub_ps(ea, oa);
    t[3 * to] = _mm512_add_ps(eb, ob);
    t[4 * to] = _mm512_sub_ps(eb, ob);
    t[5 * to] = plus_times(plus_times(d5, d3, -A2 - B2), d1, A2 * B2);
}

/* Transforms points into `size` results: A^T. */
INLINE void results(int size, const __m512 *m, int from, __m512 *y, int to) {
    const __m512 pa = _mm512_add_ps(m[from], m[2 * from]), ma = _mm512_sub_ps(m[from], m[2 * from]);
    if (size == 2) {
        y[0] = _mm512_add_ps(m[0], pa);
        y[to] = plus_times(m[5 * from], ma, A1);
        return;
    }
    const __m512 b = m[3 * from];
    if (size == 3) {
        y[0] = _mm512_add_ps(m[0], _mm512_add_ps(pa, b));
        y[to] = plus_times(times(b, B1), ma, A1);
        y[2 * to] = plus_times(plus_times(m[5 * from], b, B2), pa, A2);
        return;
    }
    const __m512 pb = _mm512_add_ps(b, m[4 * from]), mb = _mm512_sub_ps(b, m[4 * from]);
    y[0] = _mm512_add_ps(m[0], _mm512_add_ps(pa, pb));
    y[to] = plus_times(times(mb, B1), ma, A1);
    y[2 * to] = plus_times(times(pb, B2), pa, A2);
    y[3 * to] = plus_times(plus_times(m[5 * from], mb, B3), ma, A3);
}

/* Transforms `size` gradients of results into gradients of points: the transpose of `results`. */
INLINE void result_points(int size, const __m512 *g, int from, __m512 *t, int to) {
    const __m512 g0 = g[0], g1 = g[from];
    t[0] = g0;
    if (size == 2) {
        t[to] = plus_times(g0, g1, A1);
        t[2 * to] = plus_times(g0, g1, -A1);
        t[5 * to] = g1;
        return;
    }
    const __m512 g2 = g[2 * from];
    const __m512 ea = plus_times(g0, g2, A2), eb = plus_times(g0, g2, B2);
    if (size == 3) {
        t[to] = plus_times(ea, g1, A1);
        t[2 * to] = plus_times(ea, g1, -A1);
        t[3 * to] = plus_times(eb, g1, B1);
        t[5 * to] = g2;
        return;
    }
    const __m512 g3 = g[3 * from];
    const __m512 oa = plus_times(times(g1, A1), g3, A3), ob = plus_times(times(g1, B1), g3, B3);
    t[to] = _mm512_add_ps(ea, oa);
    t[2 * to] = _mm512_sub_ps(ea, oa);
    t[3 * to] = _mm512_add_ps(eb, ob);
    t[4 * to] = _mm512_sub_ps(eb, ob);
    t[5 * to] = g3;
}

/* 1 / the product of a point's distances to the other finite points, for 0, +-A1 and +-B1. */
#define F0 (1 / (A2 * B2))
#define FA (1 / (2 * A2 * (A2 - B2)))
#define FB (1 / (2 * B2 * (B2 - A2)))

/* Transforms three weights into six points: G. */
static inline void weight_points(const __m512 *w, int from, __m512 *t, int to) {
    const __m512 w0 = w[0], w1 = w[from], w2 = w[2 * from];
    const __m512 ea = times(plus_times(w0, w2, A2), FA), eb = times(plus_times(w0, w2, B2), FB);
    t[0] = times(w0, F0);
    t[to] = plus_times(ea, w1, A1 * FA);
    t[2 * to] = plus_times(ea, w1, -A1 * FA);
    t[3 * to] = plus_times(eb, w1, B1 * FB);
    t[4 * to] = plus_times(eb, w1, -B1 * FB);
    t[5 * to] = w2;
}

/* Transforms gradients of six points into gradients of three weights: the transpose of `weight_points`. */
static inline void weight_gradients(const __m512 *t, int from, __m512 *w, int to) {
    const __m512 pa = _mm512_add_ps(t[from], t[2 * from]), ma = _mm512_sub_ps(t[from], t[2 * from]);
    const __m512 pb = _mm512_add_ps(t[3 * from], t[4 * from]), mb = _mm512_sub_ps(t[3 * from], t[4 * from]);
    w[0] = plus_times(plus_times(times(t[0], F0), pa, FA), pb, FB);
    w[to] = plus_times(times(ma, A1 * FA), mb, B1 * FB);
    w[2 * to] = plus_times(plus_times(t[5 * from], pa, A2 * FA), pb, B2 * FB);
}

/* Values [N, height, width, C]. With `which`, they are gradients of 2x2 maxima: `values` and `which` are
 * [N, height / 2, width / 2, C], and each value belongs to the pixel of its window that `which` gives, 0 to 3
 * in reading order. The other three pixels are 0. */
typedef struct {
    const bf16 *values;
    const uint8_t *which;
    int height, width, channels;
} Pictures;

typedef struct {
    const bf16 *values;
    const uint8_t *which;
    int corner;
} Pixel;

/* Finds the pixels of a tile with a border, six per row; zeros outside the picture. */
static inline void find_tile(Pictures from, Tile tile, int border, Pixel *pixels) {
    const int halve = from.which != NULL, height = from.height >> halve, width = from.width >> halve;
    const int top = tile.top - border, left = tile.left - border, columns = tile.columns + 2 * border;
    const unsigned rows_there = height << halve, columns_there = width << halve;
    for (int i = 0; i < tile.rows + 2 * border; i++) {
        const unsigned row = top + i; /* a negative row becomes a huge one */
        const size_t line = ((size_t)tile.picture * height + (row >> halve)) * width;
        for (int j = 0; j < columns; j++) {
            const unsigned column = left + j;
            const int inside = row < rows_there && column < columns_there;
            const size_t at = (line + (column >> halve)) * from.channels;
            Pixel *pixel = pixels + 6 * i + j;
            pixel->values = inside ? from.values + at : zero_pixel;
            if (!halve) continue;
            pixel->which = inside ? from.which + at : (const uint8_t *)zero_pixel;
            pixel->corner = row % 2 * 2 + column % 2;
        }
    }
}

INLINE __m512 load_pixel(int pooled, Pixel pixel, int channel, __mmask16 mask) {
    if (pooled)
        mask = _mm_mask_cmpeq_epi8_mask(mask, _mm_maskz_loadu_epi8(mask, pixel.which + channel),
                                        _mm_set1_epi8(pixel.corner));
    return load_bf16(mask, pixel.values + channel);
}

/* A tile's pixels are gradients of its results, or its inputs with a border of one pixel. */
enum { RESULTS, INPUTS };

INLINE void points_of(int kind, int size, const __m512 *d, int from, __m512 *t, int to) {
    if (kind == INPUTS)
        input_points(size, d, from, t, to);
    else
        result_points(size, d, from, t, to);
}

INLINE void read_points(int kind, int pooled, int size, const Pixel *pixels, int channel, __mmask16 mask,
                        __m512 *t) {
    __m512 d[6];
#pragma GCC unroll 6
    for (int i = 0; i < size + 2 * kind; i++) d[i] = load_pixel(pooled, pixels[6 * i], channel, mask);
    points_of(kind, size, d, 1, t, 6);
}

/* What to do with points: keep them as floats, store them as bfloat16, or store them with kept ones. */
enum { KEEP, STORE, PAIR };

INLINE void put(int how, __m512 value, __m512 *kept, bf16 *to) {
    if (how == KEEP)
        *kept = value;
    else if (how == STORE)
        _mm256_store_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
    else
        _mm512_store_si512(to, side_by_side(*kept, value));
}

INLINE void tile_points(int kind, int pooled, int how, int rows, int columns, const Pixel *pixels,
                        int channel, __mmask16 mask, __m512 *kept, bf16 *const *to, size_t offset) {
    __m512 half[36], points[6];
#define DOWN(size)                                                                                           \
    for (int j = 0; j < columns + 2 * kind; j++) {                                                           \
        read_points(kind, pooled, size, pixels + j, channel, mask, half + j);                                \
    }
#define ACROSS(size)                                                                                         \
    for (int i = 0; i < 6; i++) {                                                                            \
        if (!has_point(rows, i)) continue;                                                                   \
        points_of(kind, size, half + 6 * i, 1, points, 1);                                                   \
        for (int j = 0; j < 6; j++)                                                                          \
            if (has_point(size, j)) put(how, points[j], kept + 6 * i + j, to[6 * i + j] + offset);           \
    }
    BY_SIZE(rows, DOWN)
    BY_SIZE(columns, ACROSS)
#undef DOWN
#undef ACROSS
}

/* Transforms 16 channels of a tile, from `channel` on. Point p goes to to[p] + offset. */
typedef void Transform(Tile tile, const Pixel *pixels, int channel, __mmask16 mask, __m512 *kept,
                       bf16 *const *to, size_t offset);

#define TRANSFORM(name, kind, pooled, how)                                                                   \
    NOT_INLINE void name(Tile tile, const Pixel *pixels, int channel, __mmask16 mask, __m512 *kept,          \
                         bf16 *const *to, size_t offset) {                                                   \
        if (tile.rows == 4 && tile.columns == 4) /* the usual case */                                        \
            tile_points(kind, pooled, how, 4, 4, pixels, channel, mask, kept, to, offset);                   \
        else                                                                                                 \
            tile_points(kind, pooled, how, tile.rows, tile.columns, pixels, channel, mask, kept, to,         \
                        offset);                                                                             \
    }

TRANSFORM(store_inputs, INPUTS, 0, STORE)
TRANSFORM(store_pooled_inputs, INPUTS, 1, STORE)
TRANSFORM(keep_inputs, INPUTS, 0, KEEP)
TRANSFORM(pair_inputs, INPUTS, 0, PAIR)
TRANSFORM(keep_results, RESULTS, 0, KEEP)
TRANSFORM(pair_results, RESULTS, 0, PAIR)
TRANSFORM(keep_pooled_results, RESULTS, 1, KEEP)
TRANSFORM(pair_pooled_results, RESULTS, 1, PAIR)

INLINE void result_of(int rows, int columns, const float *const *points, int channel, __m512 *result) {
    __m512 half[24], column[6];
#define DOWN(size)                                                                                           \
    for (int j = 0; j < 6; j++) {                                                                            \
        if (!has_point(columns, j)) continue;                                                                \
        for (int i = 0; i < 6; i++)                                                                          \
            if (has_point(size, i)) column[i] = _mm512_load_ps(points[6 * i + j] + channel);                 \
        results(size, column, 1, half + j, 6);                                                               \
    }
#define ACROSS(size)                                                                                         \
    for (int i = 0; i < rows; i++) results(size, half + 6 * i, 1, result + 4 * i, 1)
    BY_SIZE(rows, DOWN)
    BY_SIZE(columns, ACROSS)
#undef DOWN
#undef ACROSS
}

/* Transforms 16 channels of points, point p at points[p] + channel, into a tile's results, four per row. */
NOT_INLINE void transform_result(Tile tile, const float *const *points, int channel, __m512 *result) {
    if (tile.rows == 4 && tile.columns == 4)
        result_of(4, 4, points, channel, result); /* the usual case */
    else
        result_of(tile.rows, tile.columns, points, channel, result);
}

/* Transforms w [inputs, 3, 3, outputs] into u. */
static void transform_weights(const float *w, bf16 *u, int inputs, int outputs, int flip, int threads) {
    const int pairs = rounded_up(inputs, 16) / 2, blocks = rounded_up(outputs, 32) / 16;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int b = 0; b < blocks; b++)
        for (int pair = 0; pair < pairs; pair++)
            transform_weights_of(weight_points, w, u, inputs, outputs, b, pair, flip);
}

/* flip_negative, sortable and unsortable for half a vector. */
static inline __m256i flip_negative_half(__m256i line) {
    return _mm256_ternarylogic_epi32(_mm256_srai_epi16(line, 15), line, _mm256_set1_epi16(0x7fff), 0x6c);
}

static inline __m256i sortable_half(__m256i line) {
    return _mm256_sub_epi16(flip_negative_half(line), _mm256_set1_epi16(NANS));
}

static inline __m256i unsortable_half(__m256i line) {
    return flip_negative_half(_mm256_add_epi16(line, _mm256_set1_epi16(NANS)));
}

/* Computes the offsets of a tile's results in y [N, height, width, channels], four per row. With window 2,
 * these are the offsets of the maxima of 2x2 windows, each in the place of the window's first pixel. */
static inline void place_results(Tile tile, Map map, int window, int channels, size_t *at) {
    for (int i = 0; i < tile.rows; i += window)
        for (int j = 0; j < tile.columns; j += window) {
            const size_t row = (size_t)tile.picture * (map.height / window) + (tile.top + i) / window;
            at[4 * i + j] = (row * (map.width / window) + (tile.left + j) / window) * channels;
        }
}

/* Stores 16 channels of results at y + channel. With `which`, stores the maxima of 2x2 windows and their
 * positions instead. */
static inline void store_results(Tile tile, Map map, const __m512 *result, const size_t *at, bf16 *y,
                                 uint8_t *which, int channel, __mmask16 mask) {
    if (!which) {
        for (int i = 0; i < tile.rows && tile.top + i < map.height; i++)
            for (int j = 0; j < tile.columns && tile.left + j < map.width; j++)
                _mm256_mask_storeu_epi16(y + at[4 * i + j] + channel, mask,
                                         (__m256i)_mm512_cvtneps_pbh(result[4 * i + j]));
        return;
    }
    for (int i = 0; i < tile.rows; i += 2)
        for (int j = 0; j < tile.columns; j += 2) {
            __m256i best = sortable_half((__m256i)_mm512_cvtneps_pbh(result[4 * i + j])),
                    index = _mm256_setzero_si256();
            for (int k = 1; k < 4; k++) {
                const __m256i value =
                    sortable_half((__m256i)_mm512_cvtneps_pbh(result[4 * (i + k / 2) + j + k % 2]));
                index =
                    _mm256_mask_mov_epi16(index, _mm256_cmpgt_epi16_mask(value, best), _mm256_set1_epi16(k));
                best = _mm256_max_epi16(best, value);
            }
            _mm256_mask_storeu_epi16(y + at[4 * i + j] + channel, mask, unsortable_half(best));
            _mm_mask_storeu_epi8(which + at[4 * i + j] + channel, mask, _mm256_cvtepi16_epi8(index));
        }
}

/* What all threads need to know about a convolution. */
typedef struct {
    Pictures pictures;
    Transform *store;
    Map map;
    const bf16 *u; /* the transformed weights */
    bf16 *y;
    uint8_t *y_which;
    int outputs_there, inputs, outputs, wide; /* CO; CI and CO rounded up; output channels at a time */
    size_t v_point, m_point;                  /* distances between the points in v and m */
    Points lists[3][3];
} Convolution;

/* Convolves `count` tiles, from number `first` on. v and m are this thread's scratch memory. */
INLINE void convolve_tiles(const Convolution *job, long first, int count, bf16 *v, float *m) {
    const int places = job->map.down * job->map.across;
    const int inputs = job->inputs, outputs = job->outputs, wide = job->wide, CO = job->outputs_there;
    const int pairs = (job->pictures.channels + 1) / 2; /* of inputs that are not padding */
    const size_t v_point = job->v_point, m_point = job->m_point;
    int counts[POINTS] = {0}; /* how many of the tiles so far have this point */
    Tile tiles[TILES];
    const float *from[TILES][POINTS]; /* the products of each tile's points */
    size_t at[TILES][16];             /* offsets of each tile's results */
    for (int t = 0; t < count; t++) {
        const Tile tile = tiles[t] = tile_of(job->map, (first + t) / places, (first + t) % places);
        const Points *list = &job->lists[tile.rows - 2][tile.columns - 2];
        Pixel pixels[36];
        bf16 *to[POINTS];
        find_tile(job->pictures, tile, 1, pixels);
        for (int k = 0; k < list->count; k++) {
            const int p = list->at[k], slot = counts[p]++;
            to[p] = v + p * v_point + slot * inputs;
            from[t][p] = m + p * m_point + slot * wide;
        }
        place_results(tile, job->map, job->y_which ? 2 : 1, CO, at[t]);
        for (int c = 0; c < inputs; c += 16)
            job->store(tile, pixels, c, channel_mask(c, job->pictures.channels), NULL, to, c);
    }
    for (int o = 0; o < outputs; o += wide) {
        for (int p = 0; p < POINTS; p++)
            for (int c = 0; c < wide; c += 32) {
                const bf16 *b = job->u + ((size_t)p * outputs + o + c) * inputs;
                for (int t = 0; t < counts[p]; t += ROWS) /* products of rows past the end are ignored */
                    multiply(m + p * m_point + t * wide + c, wide,
                             (const int32_t *)(v + p * v_point + t * inputs), inputs / 2, 1, b,
                             b + 16 * inputs, pairs, 0);
            }
        for (int t = 0; t < count; t++)
            for (int c = 0; c < wide && o + c < CO; c += 16) {
                __m512 result[16];
                transform_result(tiles[t], from[t], c, result);
                store_results(tiles[t], job->map, result, at[t], job->y, job->y_which, o + c,
                              channel_mask(o + c, CO));
            }
    }
}

/* Convolves x with w [CI, 3, 3, CO], float32, with padding 1, and writes the result to y [N, H, W, CO].
 * `flip` rotates the filters by 180 degrees. x is [N, H, W, CI]; with `x_which` it is the gradient of 2x2
 * maxima, [N, H/2, W/2, CI]. With `y_which` [N, H/2, W/2, CO], y becomes the maxima of 2x2 windows, of the
 * same shape, and y_which their positions. Returns DONE or NO_MEMORY. */
int winograd(const bf16 *x, const uint8_t *x_which, const float *w, bf16 *y, uint8_t *y_which, int N, int H,
             int W, int CI, int CO, int flip, int threads) {
    const int inputs = rounded_up(CI, 16), outputs = rounded_up(CO, 32), wide = outputs % WIDE ? 32 : WIDE;
    const size_t u_size = (size_t)POINTS * inputs * outputs;
    /* A cache line more than a power of two. Otherwise all 36 points would share one set of the cache. */
    const size_t v_point = TILES * inputs + 32, m_point = TILES * wide + 16;
    bf16 *u = allocate(sizeof(bf16) * u_size), *vs = allocate(sizeof(bf16) * POINTS * v_point * threads);
    float *ms = allocate(sizeof(float) * POINTS * m_point * threads);
    const int ready = u && vs && ms;
    if (ready) {
        Convolution job = {.u = u, .y = y, .y_which = y_which, .outputs_there = CO, .inputs = inputs};
        job.pictures = (Pictures){x, x_which, H, W, CI};
        job.store = x_which ? store_pooled_inputs : store_inputs;
        job.map = y_which ? map_of(H / 2 * 2, W / 2 * 2) : map_of(H, W); /* no window has an odd last row */
        job.outputs = outputs;
        job.wide = wide;
        job.v_point = v_point;
        job.m_point = m_point;
        list_points(job.lists);
        transform_weights(w, u, CI, CO, flip, threads);
        const long tiles = (long)N * job.map.down * job.map.across;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long first = 0; first < tiles; first += TILES) {
            const int thread = omp_get_thread_num(), count = tiles - first < TILES ? tiles - first : TILES;
            convolve_tiles(&job, first, count, vs + POINTS * v_point * thread,
                           ms + POINTS * m_point * thread);
        }
    }
    free(u);
    free(vs);
    free(ms);
    return ready ? DONE : NO_MEMORY;
}

/* Transforms channels `begin` to `end` of a pair of tiles, in the same place of two pictures. Point p goes to
 * to[p]; blocks of 16 channels are `along` apart. If there is no second picture, its values are zeros. */
static void transform_pair(int kind, Pictures pictures, int N, int begin, int end, Tile tile, bf16 *const *to,
                           size_t along) {
    Pixel pixels[2][36];
    __m512 kept[POINTS];
    const int two = tile.picture + 1 < N;
    Tile next = tile;
    next.picture += two;
    find_tile(pictures, tile, kind, pixels[0]);
    find_tile(pictures, next, kind, pixels[1]);
    Transform *keep = kind == INPUTS ? keep_inputs : pictures.which ? keep_pooled_results : keep_results;
    Transform *pair = kind == INPUTS ? pair_inputs : pictures.which ? pair_pooled_results : pair_results;
    for (int c = begin; c < end; c += 16) {
        const size_t offset = (c - begin) / 16 * along;
        const __mmask16 mask = channel_mask(c, pictures.channels);
        keep(tile, pixels[0], c, mask, kept, to, offset);
        pair(tile, pixels[1], c, two ? mask : 0, kept, to, offset);
    }
}

/* What all threads need to know about a weight gradient. */
typedef struct {
    Pictures x, g;
    Map map;
    int N;
    Division division;
    int chunk;               /* pairs of tiles transformed at a time */
    size_t v_point, z_point; /* distances between the points in v and in z */
    Points lists[3][3];
} WeightGradient;

static WeightGradient plan_gradient(Pictures x, Pictures g, int N, int threads) {
    const int H = x.height, W = x.width;
    WeightGradient job = {.x = x, .g = g, .N = N, .division = divide(x.channels, g.channels, threads)};
    job.map = g.which ? map_of(H / 2 * 2, W / 2 * 2) : map_of(H, W);
    const int inputs = job.division.inputs, mine = job.division.mine;
    const int fit = TRANSFORMED / (POINTS * 4 * (inputs + mine)) / 8 * 8;
    job.chunk = fit < 16 ? 16 : fit > 512 ? 512 : fit;
    job.v_point = 2 * job.chunk * inputs + 32;
    job.z_point = 2 * job.chunk * mine + 32;
    list_points(job.lists);
    return job;
}

/* Transforms `count` pairs of tiles, from number `first` on, into v and z, which are [16 channels][pair of
 * tiles][16][2] per point. slots becomes the number of pairs that have each point. */
INLINE void transform_chunk(const WeightGradient *job, int share, long first, int count, bf16 *v, bf16 *z,
                            uint16_t *slots) {
    const int places = job->map.down * job->map.across, along = 32 * job->chunk, mine = job->division.mine;
    memset(slots, 0, sizeof(uint16_t) * POINTS);
    for (int k = 0; k < count; k++) {
        const Tile tile = tile_of(job->map, (first + k) / places * 2, (first + k) % places);
        const Points *list = &job->lists[tile.rows - 2][tile.columns - 2];
        bf16 *to_v[POINTS], *to_z[POINTS];
        for (int l = 0; l < list->count; l++) {
            const int p = list->at[l], slot = slots[p]++;
            to_v[p] = v + p * job->v_point + 32 * slot;
            to_z[p] = z + p * job->z_point + 32 * slot;
        }
        transform_pair(INPUTS, job->x, job->N, 0, job->division.inputs, tile, to_v, along);
        transform_pair(RESULTS, job->g, job->N, share * mine, (share + 1) * mine, tile, to_z, along);
    }
}

/* Computes one thread's sums over its pictures for its outputs: [point][inputs / 32][outputs][32]. */
INLINE void sum_part(const WeightGradient *job, int part, bf16 *v, bf16 *z, float *sum) {
    const Division *division = &job->division;
    const int places = job->map.down * job->map.across, share = part % division->shares,
              group = part / division->shares;
    const int inputs = division->inputs, mine = division->mine, chunk = job->chunk;
    const long pairs = (job->N + 1L) / 2 * places;
    const long begin = pairs * group / division->groups, end = pairs * (group + 1) / division->groups;
    if (begin == end) memset(sum, 0, sizeof(float) * POINTS * division->point);
    for (long first = begin; first < end; first += chunk) {
        uint16_t slots[POINTS];
        transform_chunk(job, share, first, end - first < chunk ? end - first : chunk, v, z, slots);
        for (int p = 0; p < POINTS; p++)
            for (int i = 0; i < inputs; i += 32) {
                const bf16 *b = v + p * job->v_point + 2 * i * chunk;
                for (int o = 0; o < mine; o += ROWS)
                    multiply(sum + p * division->point + (size_t)i * mine + 32 * o, 32,
                             (const int32_t *)(z + p * job->z_point + 2 * (o / 16 * 16) * chunk) + o % 16, 1,
                             16, b, b + 32 * chunk, slots[p], first > begin);
            }
    }
}

/* Computes dw [CO, 3, 3, CI], the gradient of `winograd` with respect to w, from x [N, H, W, CI] and g
 * [N, H, W, CO]. With `which`, g is the gradient of 2x2 maxima, [N, H/2, W/2, CO].
 *
 * The matrix products sum over pairs of tiles. The tiles of a pair are in the same place of two pictures, so
 * they have the same points. Threads divide the pictures, and also the output channels if one thread's sums
 * would be too large. Every thread transforms all the tiles that it needs itself: on two distant cores,
 * sharing them made two threads as slow as one. Returns DONE or NO_MEMORY. */
int winograd_weight_gradient(const bf16 *x, const bf16 *g, const uint8_t *which, float *dw, int N, int H,
                             int W, int CI, int CO, int threads) {
    const WeightGradient job =
        plan_gradient((Pictures){x, NULL, H, W, CI}, (Pictures){g, which, H, W, CO}, N, threads);
    const size_t sum_size = POINTS * job.division.point, v_size = POINTS * job.v_point,
                 z_size = POINTS * job.z_point;
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
