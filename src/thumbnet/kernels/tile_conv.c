/* 3x3 convolutions and their input gradients with AMX. See tiles.h.
 *
 * A result of 32 pictures is a matrix product: A holds their pixels under a tap, B the tap's weights. It sums
 * over the taps and over the channels. */
#include "memory.h"
#include "tiles.h"

#include <omp.h>

/* A pixel that goes into a result: its place in the packed rows, and the tap that multiplies it. */
typedef struct {
    int slot, tap;
} Link;

/* A convolution. `back` is the input gradient of one: `from` is then the gradient of the result. */
typedef struct {
    Maps from;
    int N, H, W, CO, stride, back; /* the results are [N, H, W, CO] */
    int steps, blocks;             /* blocks of 32 channels of `from`, of the results */
    int rows, strip, ring;         /* rows of results in all and at a time; rows of `from` that are kept */
    int parts;                     /* parts of the rows, so that there is work for all threads */
    const Link *links;
    const int *begin; /* where each result's links begin */
    const bf16 *weights;
    bf16 *y;
    uint8_t *which; /* with it, y becomes the maxima of 2x2 windows, and `which` their places */
} Conv;

/* The rows of `from` that results in rows first to end - 1 need, at most. */
static int needed_rows(const Conv *conv, int rows) {
    return conv->back ? (rows + 1) / conv->stride + 1 : (rows - 1) * conv->stride + 3;
}

static int first_needed(const Conv *conv, int first) {
    return larger(0, conv->back ? (first + conv->stride - 2) / conv->stride : first * conv->stride - 1);
}

static int end_needed(const Conv *conv, int end) {
    return smaller(rows_of(conv->from), conv->back ? end / conv->stride + 1 : (end - 1) * conv->stride + 2);
}

static Conv plan_conv(Maps from, int N, int H, int W, int CO, int stride, int back, int pooled, int threads) {
    Conv conv = {.from = from, .N = N, .H = H, .W = W, .CO = CO, .stride = stride, .back = back};
    conv.steps = rounded_up(from.channels, BLOCK) / BLOCK;
    conv.blocks = rounded_up(CO, BLOCK) / BLOCK;
    conv.rows = pooled ? H / 2 * 2 : H;
    const int each = pooled ? 2 : 1, units = rounded_up(N, BLOCK) / BLOCK;
    const size_t row = (size_t)columns_of(from) * conv.steps * 2 * TILE * sizeof(bf16);
    const size_t sums = (size_t)W * 1024 * sizeof(float);
    conv.strip = conv.rows;
    while (conv.strip > each &&
           smaller(needed_rows(&conv, conv.strip), rows_of(from)) * row + conv.strip * sums > ROOM)
        conv.strip -= each;
    conv.ring = smaller(needed_rows(&conv, conv.strip), rows_of(from));
    conv.parts = smaller(conv.rows / each, units < threads ? (threads + units - 1) / units : 1);
    return conv;
}

/* Lists the links of all results. */
static void list_links(const Conv *conv, Link *links, int *begin) {
    const int height = rows_of(conv->from), width = columns_of(conv->from), stride = conv->stride;
    int count = 0;
    for (int p = 0; p < conv->rows * conv->W; p++) {
        begin[p] = count;
        for (int tap = 0; tap < 9; tap++) {
            const int down = tap / 3 - 1, right = tap % 3 - 1;
            int row = p / conv->W, column = p % conv->W;
            if (conv->back) {
                row -= down;
                column -= right;
                if (row % stride || column % stride) continue;
                row /= stride;
                column /= stride;
            } else {
                row = row * stride + down;
                column = column * stride + right;
            }
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            links[count++] = (Link){row % conv->ring * width + column, tap};
        }
    }
    begin[conv->rows * conv->W] = count;
}

/* Packs w as [outputs / 32][inputs / 32][9][2][16 pairs of inputs][16 outputs][2]. w is [CO, 3, 3, CI], or
 * [CI, 3, 3, CO] with `back`. */
static void pack_weights(const Conv *conv, const bf16 *w, bf16 *packed, int threads) {
    const int CI = conv->from.channels, CO = conv->CO;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int o = 0; o < 2 * conv->blocks; o++)
        for (int tap = 0; tap < 9; tap++)
            for (int k = 0; k < conv->steps; k++) {
                __m512i tile[16];
                for (int j = 0; j < 16; j++) {
                    if (!conv->back) {
                        const __mmask32 mask = 16 * o + j < CO ? wide_mask(BLOCK * k, CI) : 0;
                        tile[j] =
                            _mm512_maskz_loadu_epi16(mask, w + ((16L * o + j) * 9 + tap) * CI + BLOCK * k);
                        continue;
                    }
                    const int input = BLOCK * k + 2 * j;
                    const __mmask16 mask = channel_mask(16 * o, CO);
                    const bf16 *row = w + ((long)input * 9 + tap) * CO + 16 * o;
                    tile[j] = interleave(_mm256_maskz_loadu_epi16(input < CI ? mask : 0, row),
                                         _mm256_maskz_loadu_epi16(input + 1 < CI ? mask : 0, row + 9 * CO));
                }
                if (!conv->back) transpose(tile);
                store_tile(packed + ((((size_t)(o / 2) * conv->steps + k) * 9 + tap) * 2 + o % 2) * TILE,
                           tile);
            }
}

/* Packs rows first to end - 1 of 32 pictures as [channels / 32][row in the ring][column][2][16 pictures][32].
 */
INLINE void pack_rows(const Conv *conv, long picture, int pictures, int first, int end, bf16 *packed) {
    const int width = columns_of(conv->from), steps = conv->steps;
    const size_t step = (size_t)conv->ring * width * 2 * TILE;
    for (int n = 0; n < BLOCK; n++)
        for (int row = first; row < end; row++) {
            bf16 *to = packed + (size_t)(row % conv->ring) * width * 2 * TILE + n * 32;
            for (int column = 0; column < width; column++, to += 2 * TILE) {
                const Pixel pixel = pixel_at(conv->from, picture + n, row, column);
                for (int k = 0; k < steps; k++)
                    _mm512_store_si512(to + k * step, n < pictures ? load_wide(conv->from, pixel, BLOCK * k)
                                                                   : _mm512_setzero_si512());
            }
        }
}

/* Adds the products of 32 channels of `from` to 32 outputs of one result of 32 pictures, or begins with them
 * if `add` is 0: sums [32 pictures][32 outputs]. */
INLINE void multiply_links(const Conv *conv, int result, const bf16 *packed, const bf16 *weights, float *sums,
                           int add) {
    if (add) {
        _tile_loadd(0, sums, 128);
        _tile_loadd(1, sums + 16, 128);
        _tile_loadd(2, sums + 512, 128);
        _tile_loadd(3, sums + 528, 128);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int l = conv->begin[result]; l < conv->begin[result + 1]; l++) {
        const bf16 *a = packed + (size_t)conv->links[l].slot * 2 * TILE;
        const bf16 *b = weights + (size_t)conv->links[l].tap * 2 * TILE;
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
}

/* Computes 32 outputs of the results in rows first to end - 1 of 32 pictures: sums [result][32 pictures][32].
 *
 * The channels are the outer loop, because 32 of them, under all taps, fit into the L1 cache together with
 * their weights. */
INLINE void multiply_rows(const Conv *conv, int first, int end, const bf16 *packed, int block, float *sums) {
    const size_t step = (size_t)conv->ring * columns_of(conv->from) * 2 * TILE;
    const bf16 *weights = conv->weights + (size_t)block * conv->steps * 9 * 2 * TILE;
    for (int k = 0; k < conv->steps; k++)
        for (int p = first * conv->W; p < end * conv->W; p++)
            multiply_links(conv, p, packed + k * step, weights + (size_t)k * 9 * 2 * TILE,
                           sums + (size_t)(p - first * conv->W) * 1024, k > 0);
}

INLINE __m512i rounded(const float *sums) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums + 16), _mm512_load_ps(sums));
}

/* Stores 32 outputs of the results in rows first to end - 1 of 32 pictures, from `picture` on. */
INLINE void store_rows(const Conv *conv, long picture, int pictures, int first, int end, int block,
                       const float *sums) {
    const __mmask32 mask = wide_mask(BLOCK * block, conv->CO);
    const size_t CO = conv->CO, map = (size_t)conv->H * conv->W;
    for (int p = first * conv->W; p < end * conv->W; p++, sums += 1024) {
        bf16 *to = conv->y + (picture * map + p) * CO + BLOCK * block;
        for (int n = 0; n < pictures; n++)
            _mm512_mask_storeu_epi16(to + n * map * CO, mask, rounded(sums + BLOCK * n));
    }
}

/* The same for the maxima of 2x2 windows. */
INLINE void store_maxima(const Conv *conv, long picture, int pictures, int first, int end, int block,
                         const float *sums) {
    const __mmask32 mask = wide_mask(BLOCK * block, conv->CO);
    const int H = conv->H / 2, W = conv->W / 2;
    const size_t CO = conv->CO, map = (size_t)H * W;
    for (int row = first / 2; row < end / 2; row++)
        for (int column = 0; column < W; column++) {
            const float *window = sums + (size_t)((2 * row - first) * conv->W + 2 * column) * 1024;
            for (int n = 0; n < pictures; n++) {
                const size_t at = ((picture + n) * map + row * W + column) * CO + BLOCK * block;
                __m512i best = sortable(rounded(window + BLOCK * n)), place = _mm512_setzero_si512();
                for (int corner = 1; corner < 4; corner++) {
                    const float *sum = window + (size_t)(corner / 2 * conv->W + corner % 2) * 1024;
                    take_larger(&best, &place, sortable(rounded(sum + BLOCK * n)), corner);
                }
                _mm512_mask_storeu_epi16(conv->y + at, mask, unsortable(best));
                _mm256_mask_storeu_epi8(conv->which + at, mask, _mm512_cvtepi16_epi8(place));
            }
        }
}

/* Computes one part of the rows of 32 pictures, from `picture` on. */
static void convolve_part(const Conv *shared, long picture, int part, bf16 *packed, float *sums) {
    const Conv local = *shared, *conv = &local; /* no store can change this copy, so it stays in registers */
    const int each = conv->which ? 2 : 1, pairs = conv->rows / each;
    const int pictures = smaller(conv->N - picture, BLOCK), last = each * (pairs * (part + 1) / conv->parts);
    int next = 0; /* the first row of `from` that is not packed yet */
    for (int first = each * (pairs * part / conv->parts); first < last; first += conv->strip) {
        const int end = smaller(first + conv->strip, last), needed = end_needed(conv, end);
        pack_rows(conv, picture, pictures, larger(next, first_needed(conv, first)), needed, packed);
        next = needed;
        finish_stores();
        for (int block = 0; block < conv->blocks; block++) {
            multiply_rows(conv, first, end, packed, block, sums);
            if (conv->which)
                store_maxima(conv, picture, pictures, first, end, block, sums);
            else
                store_rows(conv, picture, pictures, first, end, block, sums);
        }
    }
}

/* Convolves x with w, padding 1, and writes the result to y [N, H, W, CO], rounded.
 *
 * x is [N, XH, XW, CI] with H = ceil(XH / stride) and W = ceil(XW / stride), and w is [CO, 3, 3, CI]. With
 * `which` [N, H / 2, W / 2, CO], y becomes the maxima of 2x2 windows, of the same shape, and `which` their
 * places.
 *
 * With `back`, y is the gradient of a convolution's input, x that of its result, so XH = ceil(H / stride) and
 * XW = ceil(W / stride), and w is [CI, 3, 3, CO]. With `x_which`, x is the gradient of 2x2 maxima.
 *
 * Returns DONE or NO_MEMORY. */
int tile_conv(const bf16 *x, const uint8_t *x_which, const bf16 *w, bf16 *y, uint8_t *which, int N, int XH,
              int XW, int CI, int H, int W, int CO, int stride, int back, int threads) {
    const Maps from = {x, x_which, XH, XW, CI};
    Conv conv = plan_conv(from, N, H, W, CO, stride, back, which != NULL, threads);
    const size_t results = (size_t)conv.rows * W;
    const size_t packed_size = (size_t)conv.ring * columns_of(from) * conv.steps * 2 * TILE;
    const size_t sums_size = (size_t)conv.strip * W * 1024;
    Link *links = allocate(sizeof(Link) * 9 * results);
    int *begin = allocate(sizeof(int) * (results + 1));
    bf16 *weights = allocate(sizeof(bf16) * conv.blocks * 9 * conv.steps * 2 * TILE);
    bf16 *packed = allocate(sizeof(bf16) * packed_size * threads);
    float *sums = allocate(sizeof(float) * sums_size * threads);
    const int ready = links && begin && weights && packed && sums;
    if (ready) {
        list_links(&conv, links, begin);
        pack_weights(&conv, w, weights, threads);
        conv.links = links;
        conv.begin = begin;
        conv.weights = weights;
        conv.y = y;
        conv.which = which;
        const int items = rounded_up(N, BLOCK) / BLOCK * conv.parts;
#pragma omp parallel num_threads(threads)
        {
            const int thread = omp_get_thread_num();
            TileConfig before;
            begin_tiles(&before);
#pragma omp for schedule(dynamic)
            for (int item = 0; item < items; item++)
                convolve_part(&conv, (long)BLOCK * (item / conv.parts), item % conv.parts,
                              packed + packed_size * thread, sums + sums_size * thread);
            end_tiles(&before);
        }
    }
    free(links);
    free(begin);
    free(weights);
    free(packed);
    free(sums);
    return ready ? DONE : NO_MEMORY;
}
