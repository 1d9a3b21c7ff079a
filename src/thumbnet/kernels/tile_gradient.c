/* The weight gradient of a 3x3 convolution with AMX. See tiles.h.
 *
 * dw[o][tap][i] = sum over pixels p and pictures n of g[n][p][o] * x[n][p + tap][i]. This is a matrix product
 * whose inner dimension is 32 pictures at a time: A is g transposed, and B is x. */
#include "memory.h"
#include "tiles.h"

#include <omp.h>

/* How the work is laid out and shared. */
typedef struct {
    Maps x, g;
    int N, stride;
    int rows, columns;         /* of g, without those that are always 0 */
    int strip, strips;         /* rows of g at a time; parts of the rows */
    int together, items;       /* blocks of 32 pictures at a time; how often */
    int x_rows;                /* rows of x at a time */
    int blocks_in, blocks_out; /* blocks of 16 channels, even numbers */
    int shares, groups, mine;  /* parts of the channels, of the items; blocks_out per thread */
    size_t tiles;              /* tiles of sums per thread */
} Gradient;

static Gradient plan_gradient(Maps x, Maps g, int N, int stride, int threads) {
    Gradient plan = {.x = x, .g = g, .N = N, .stride = stride, .rows = rows_of(g), .columns = columns_of(g)};
    plan.blocks_in = rounded_up(x.channels, BLOCK) / 16;
    plan.blocks_out = rounded_up(g.channels, BLOCK) / 16;
    /* Threads divide the output channels until one thread's sums fit into its cache, then the pictures. */
    plan.shares = 1;
    while (threads % (2 * plan.shares) == 0 && plan.blocks_out / 2 % (2 * plan.shares) == 0 &&
           36L * x.channels * g.channels / plan.shares > 1L << 20)
        plan.shares *= 2;
    plan.groups = threads / plan.shares;
    plan.mine = plan.blocks_out / plan.shares;
    plan.tiles = (size_t)9 * plan.mine * plan.blocks_in;
    const size_t g_row = (size_t)plan.columns * plan.mine * TILE * sizeof(bf16);
    const size_t x_row = (size_t)x.width * plan.blocks_in * TILE * sizeof(bf16);
    plan.strip = plan.rows;
    while (plan.strip > 1 && plan.strip * g_row + smaller(plan.strip * stride + 2, x.height) * x_row > ROOM)
        plan.strip--;
    plan.x_rows = smaller(plan.strip * stride + 2, x.height);
    plan.strips = (plan.rows + plan.strip - 1) / plan.strip;
    const int units = rounded_up(N, BLOCK) / BLOCK;
    const int fit = ROOM / (plan.strip * g_row + plan.x_rows * x_row);
    const int share = (units + plan.groups - 1) / plan.groups; /* so that every group has work */
    plan.together = plan.strips > 1 ? 1 : larger(1, smaller(fit, share));
    plan.items = (units + plan.together - 1) / plan.together * plan.strips;
    return plan;
}

/* Packs rows first to end - 1 of x as [block of channels][32 pictures][row][column][16 pairs][16][2]. */
INLINE void pack_x(const Gradient *plan, long picture, int first, int end, bf16 *packed) {
    const Maps x = plan->x;
    const size_t map = (size_t)plan->x_rows * x.width, block = plan->together * map * TILE;
    for (int n = 0; n < plan->together * BLOCK; n += 2) {
        const long there = plan->N - picture - n; /* pictures that exist */
        for (int row = first; row < end; row++) {
            bf16 *to = packed + (n / BLOCK * map + (size_t)(row - first) * x.width) * TILE + n % BLOCK * 16;
            for (int column = 0; column < x.width; column++, to += TILE) {
                const Pixel a = pixel_at(x, picture + n, row, column);
                const Pixel b = pixel_at(x, picture + n + 1, row, column);
                for (int i = 0; i < plan->blocks_in; i++) {
                    const __m256i low = there > 0 ? load_half(x, a, 16 * i) : _mm256_setzero_si256();
                    const __m256i high = there > 1 ? load_half(x, b, 16 * i) : _mm256_setzero_si256();
                    _mm512_store_si512(to + i * block, interleave(low, high));
                }
            }
        }
    }
}

/* Packs one share of g's channels as [block of channels][32 pictures][row][column][16 channels][32]. */
INLINE void pack_g(const Gradient *plan, int share, long picture, int first, int end, bf16 *packed) {
    const Maps g = plan->g;
    const size_t map = (size_t)plan->strip * plan->columns, block = plan->together * map * TILE;
    for (int t = 0; t < plan->together; t++)
        for (int row = first; row < end; row++)
            for (int column = 0; column < plan->columns; column++)
                for (int o = 0; o < plan->mine; o++) {
                    __m512i tile[16];
                    for (int j = 0; j < 16; j++) {
                        __m256i half[2];
                        for (int k = 0; k < 2; k++) {
                            const long n = picture + BLOCK * t + 2 * j + k;
                            half[k] = n < plan->N ? load_half(g, pixel_at(g, n, row, column),
                                                              16 * (share * plan->mine + o))
                                                  : _mm256_setzero_si256();
                        }
                        tile[j] = interleave(half[0], half[1]);
                    }
                    transpose(tile);
                    store_tile(packed + o * block +
                                   (t * map + (size_t)(row - first) * plan->columns + column) * TILE,
                               tile);
                }
}

/* Adds the products of `count` pixels to the sums of 32 x 32 channels in tiles 0 to 3. a0 and a1 hold 16
 * channels of g each, b0 and b1 16 channels of x. */
INLINE void multiply_pixels(const bf16 *a0, const bf16 *a1, const bf16 *b0, const bf16 *b1, size_t b_step,
                            int count) {
    for (int k = 0; k < count; k++) {
        _tile_loadd(4, a0 + k * TILE, 64);
        _tile_loadd(6, b0 + k * b_step, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + k * b_step, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + k * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* Adds the products of the packed rows first to end - 1 of g, and of x from row x_first on, to `sum`
 * [tap][block of outputs][block of inputs][16][16]. */
INLINE void multiply_rows(const Gradient *plan, int first, int end, int x_first, const bf16 *xs,
                          const bf16 *gs, float *sum) {
    const int stride = plan->stride, columns = plan->columns, width = plan->x.width;
    const size_t x_map = (size_t)plan->x_rows * width * TILE, x_block = plan->together * x_map;
    const size_t g_map = (size_t)plan->strip * columns * TILE, g_block = plan->together * g_map;
    for (int o = 0; o < plan->mine; o += 2)
        for (int i = 0; i < plan->blocks_in; i += 2)
            for (int tap = 0; tap < 9; tap++) {
                const int down = tap / 3 - 1, right = tap % 3 - 1, left = right < 0;
                const int count = smaller(columns, (width - 1 - right + stride) / stride) - left;
                float *s0 = sum + ((size_t)(tap * plan->mine + o) * plan->blocks_in + i) * 256;
                float *s1 = s0 + plan->blocks_in * 256;
                _tile_loadd(0, s0, 64);
                _tile_loadd(1, s0 + 256, 64);
                _tile_loadd(2, s1, 64);
                _tile_loadd(3, s1 + 256, 64);
                for (int t = 0; t < plan->together; t++)
                    for (int row = first; row < end; row++) {
                        const int x_row = row * stride + down;
                        if (x_row < 0 || x_row >= plan->x.height) continue;
                        const bf16 *a =
                            gs + o * g_block + t * g_map + ((size_t)(row - first) * columns + left) * TILE;
                        const bf16 *b = xs + i * x_block + t * x_map +
                                        ((size_t)(x_row - x_first) * width + left * stride + right) * TILE;
                        multiply_pixels(a, a + g_block, b, b + x_block, (size_t)stride * TILE, count);
                    }
                _tile_stored(0, s0, 64);
                _tile_stored(1, s0 + 256, 64);
                _tile_stored(2, s1, 64);
                _tile_stored(3, s1 + 256, 64);
            }
}

/* Computes one thread's part: the sums over its items for its channels. */
static void sum_part(const Gradient *shared, int part, bf16 *xs, bf16 *gs, float *sum) {
    const Gradient local = *shared, *plan = &local; /* no store can change this copy */
    const int share = part % plan->shares, group = part / plan->shares;
    memset(sum, 0, plan->tiles * 1024);
    TileConfig before;
    begin_tiles(&before);
    const int last = (long)plan->items * (group + 1) / plan->groups;
    for (int item = (long)plan->items * group / plan->groups; item < last; item++) {
        const long picture = (long)item / plan->strips * plan->together * BLOCK;
        const int first = item % plan->strips * plan->strip, end = smaller(first + plan->strip, plan->rows);
        const int x_first = larger(0, first * plan->stride - 1);
        const int x_end = smaller(plan->x.height, (end - 1) * plan->stride + 2);
        pack_x(plan, picture, x_first, x_end, xs);
        pack_g(plan, share, picture, first, end, gs);
        finish_stores();
        multiply_rows(plan, first, end, x_first, xs, gs, sum);
    }
    end_tiles(&before);
}

/* Adds up all threads' sums for output channel o, and writes it to dw [CO, 3, 3, CI]. */
static void add_up(const Gradient *plan, const float *sums, int o, float *dw) {
    const int block = o / 16, mine = plan->mine, CI = plan->x.channels;
    const float *from = sums + plan->tiles * 256 * (block / mine);
    for (int tap = 0; tap < 9; tap++)
        for (int i = 0; i < CI; i++) {
            const size_t tile = (size_t)(tap * mine + block % mine) * plan->blocks_in + i / 16;
            const size_t at = tile * 256 + o % 16 * 16 + i % 16;
            float total = 0;
            for (int n = 0; n < plan->groups; n++) total += from[plan->tiles * 256 * plan->shares * n + at];
            dw[((size_t)o * 9 + tap) * CI + i] = total;
        }
}

/* Computes dw [CO, 3, 3, CI] from x [N, XH, XW, CI] and g [N, H, W, CO], for padding 1, where H and W are XH
 * and XW divided by the stride and rounded up. With `which`, g is the gradient of 2x2 maxima, [N, H / 2,
 * W / 2, CO]. CI and CO must not exceed MAX_CHANNELS. Returns DONE or NO_MEMORY. */
int tile_weight_gradient(const bf16 *x, const bf16 *g, const uint8_t *which, float *dw, int N, int XH, int XW,
                         int CI, int H, int W, int CO, int stride, int threads) {
    const Gradient plan =
        plan_gradient((Maps){x, NULL, XH, XW, CI}, (Maps){g, which, H, W, CO}, N, stride, threads);
    const size_t x_size = (size_t)plan.blocks_in * plan.together * plan.x_rows * XW * TILE;
    const size_t g_size = (size_t)plan.mine * plan.together * plan.strip * plan.columns * TILE;
    const size_t sum_size = plan.tiles * 256;
    float *sums = allocate(sizeof(float) * sum_size * threads);
    bf16 *xs = allocate(sizeof(bf16) * x_size * threads), *gs = allocate(sizeof(bf16) * g_size * threads);
    const int ready = sums && xs && gs;
    if (ready) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int part = 0; part < threads; part++)
            sum_part(&plan, part, xs + x_size * part, gs + g_size * part, sums + sum_size * part);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int o = 0; o < CO; o++) add_up(&plan, sums, o, dw);
    }
    free(sums);
    free(xs);
    free(gs);
    return ready ? DONE : NO_MEMORY;
}
