/* The weight gradient of a 3x3 convolution with AMX, the matrix tiles of Intel's Sapphire Rapids and later.
 *
 * dw[o][dy][dx][i] = sum over positions p of g[p][o] * x[p + (dy, dx)][i]. For each of the nine taps, this is
 * a matrix product whose inner dimension is all positions of all pictures. Positions are laid out with a
 * border of zeros, (H + 1) x (W + 1) per picture, so that every tap is a constant offset in the layout. With
 * stride 2, x has four layouts of the size of g's, one per combination of even or odd rows and columns.
 *
 * A tile instruction multiplies A [16 x 32] by B [32 x 16], whose rows are interleaved in pairs. Here A is g
 * transposed and B is x. Both are packed once per chunk of about a thousand positions, and stay in the L2
 * cache while all nine taps use them. x is packed twice, in pairs that begin at even and at odd positions, so
 * that every tap reads whole cache lines. */
#include "memory.h"
#include "vectors.h"

#include <omp.h>
#include <string.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

enum { CHUNK = 1024, STRIP = 8 }; /* positions packed at a time; tiles of 32 positions per tap at a time */

/* How the work is laid out and shared. */
typedef struct {
    int N, H, W, CI, CO, stride;  /* g is [N, H, W, CO], x is [N, H stride, W stride, CI] */
    int pitch, picture;           /* positions per row and per picture, with the border */
    int together, chunks;         /* pictures per chunk; number of chunks */
    int steps;                    /* tiles of 32 positions per chunk */
    int halo;                     /* zeros before the first position, an even number */
    int pairs, layouts;           /* pairs of positions per layout of x; number of layouts */
    int blocks_in, blocks_out;    /* blocks of 16 channels, even numbers */
    int shares, groups, mine;     /* parts of the channels, of the pictures; blocks_out per thread */
    size_t tiles;                 /* tiles of sums per thread */
    const int *g_pixel, *x_pixel; /* the chunk's pixel at each position, -1 in the border */
} Plan;

static Plan plan_of(int N, int H, int W, int CI, int CO, int stride, int threads) {
    Plan plan = {.N = N, .H = H, .W = W, .CI = CI, .CO = CO, .stride = stride};
    plan.pitch = W + 1;
    plan.picture = (H + 1) * plan.pitch;
    const int fit = CHUNK / plan.picture;
    plan.together = fit < 1 ? 1 : fit > N ? N : fit;
    plan.chunks = (N + plan.together - 1) / plan.together;
    plan.steps = (plan.together * plan.picture + 31) / 32;
    plan.halo = plan.pitch + 1 + (plan.pitch & 1);
    plan.pairs = (plan.halo + 32 * plan.steps + plan.pitch + 4) / 2 + 1;
    plan.layouts = stride * stride;
    plan.blocks_in = rounded_up(CI, 32) / 16;
    plan.blocks_out = rounded_up(CO, 32) / 16;
    /* Threads divide the output channels until one thread's sums fit into its cache, then the pictures. */
    plan.shares = 1;
    while (threads % (2 * plan.shares) == 0 && plan.blocks_out / 2 % (2 * plan.shares) == 0 &&
           36L * CI * CO / plan.shares > 1L << 20)
        plan.shares *= 2;
    plan.groups = threads / plan.shares;
    plan.mine = plan.blocks_out / plan.shares;
    plan.tiles = (size_t)9 * plan.mine * plan.blocks_in;
    return plan;
}

static void find_pixels(const Plan *plan, int *g_pixel, int *x_pixel) {
    const int W = plan->W, stride = plan->stride;
    for (int q = 0; q < 2 * plan->pairs + 2; q++) {
        const int p = q - plan->halo, n = p / plan->picture;
        const int row = p % plan->picture / plan->pitch, column = p % plan->pitch;
        const int outside = p < 0 || n >= plan->together || row >= plan->H || column >= W;
        g_pixel[q] = outside ? -1 : (n * plan->H + row) * W + column;
        x_pixel[q] = outside ? -1 : (n * plan->H * stride + row * stride) * W * stride + column * stride;
    }
}

/* Interleaves 16 channels of two positions: a[c] and b[c] are neighbours in 32 bits. */
static inline __m512i interleave(const bf16 *a, const bf16 *b, __mmask16 mask) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static inline void transpose(__m512i r[16]) { /* 16 x 16 values of 32 bits */
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    memcpy(r, t, sizeof t);
}

/* Whether position q is one of the chunk's `pixels` pixels. The last chunk may have fewer than the others. */
static inline int exists(const Plan *plan, int q, int pixels) {
    return plan->g_pixel[q] >= 0 && plan->g_pixel[q] < pixels;
}

static inline const bf16 *x_at(const Plan *plan, const bf16 *x, int q, int shift, int pixels) {
    return exists(plan, q, pixels) ? x + (size_t)(plan->x_pixel[q] + shift) * plan->CI : zero_pixel;
}

static inline const bf16 *g_at(const Plan *plan, const bf16 *g, int q, int pixels) {
    return exists(plan, q, pixels) ? g + (size_t)plan->g_pixel[q] * plan->CO : zero_pixel;
}

/* Packs a chunk of x as [layout][even or odd pairs][block][pair][16][2]. */
INLINE void pack_x(const Plan *plan, const bf16 *x, int pixels, bf16 *packed) {
    for (int r = 0; r < plan->layouts * plan->pairs; r++) {
        const int layout = r / plan->pairs, q = r % plan->pairs * 2;
        const int shift = layout / 2 * plan->W * plan->stride + layout % 2;
        const bf16 *a = x_at(plan, x, q, shift, pixels), *b = x_at(plan, x, q + 1, shift, pixels);
        const bf16 *c = x_at(plan, x, q + 2, shift, pixels);
        for (int i = 0; i < plan->blocks_in; i++) {
            const __mmask16 mask = channel_mask(16 * i, plan->CI);
            bf16 *even = packed + (((size_t)layout * 2 * plan->blocks_in + i) * plan->pairs + q / 2) * 32;
            bf16 *odd = even + (size_t)plan->blocks_in * plan->pairs * 32;
            _mm512_store_si512(even, interleave(a + 16 * i, b + 16 * i, mask));
            _mm512_store_si512(odd, interleave(b + 16 * i, c + 16 * i, mask));
        }
    }
}

/* Packs one share of a chunk's channels of g as [block][step][16 channels][32 positions]. */
INLINE void pack_g(const Plan *plan, const bf16 *g, int share, int pixels, bf16 *packed) {
    for (int k = 0; k < plan->steps; k++)
        for (int o = 0; o < plan->mine; o++) {
            const int channel = 16 * (share * plan->mine + o);
            const __mmask16 mask = channel_mask(channel, plan->CO);
            __m512i tile[16];
            for (int j = 0; j < 16; j++) {
                const int q = plan->halo + 32 * k + 2 * j;
                tile[j] = interleave(g_at(plan, g, q, pixels) + channel,
                                     g_at(plan, g, q + 1, pixels) + channel, mask);
            }
            transpose(tile);
            bf16 *to = packed + ((size_t)o * plan->steps + k) * 512;
            for (int j = 0; j < 16; j++) _mm512_store_si512(to + 32 * j, tile[j]);
        }
}

/* Adds one tap's products over `steps` tiles of positions to the sums of 32 x 32 channels. The sums are four
 * tiles, two each in s0 and s1. a0 and a1 hold 16 channels of g each, b0 and b1 16 channels of x. */
INLINE void multiply_tap(const bf16 *a0, const bf16 *a1, const bf16 *b0, const bf16 *b1, float *s0, float *s1,
                         int steps) {
    _tile_loadd(0, s0, 64);
    _tile_loadd(1, s0 + 256, 64);
    _tile_loadd(2, s1, 64);
    _tile_loadd(3, s1 + 256, 64);
    for (int k = 0; k < steps; k++) {
        _tile_loadd(4, a0 + k * 512, 64);
        _tile_loadd(6, b0 + k * 512, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + k * 512, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + k * 512, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, s0, 64);
    _tile_stored(1, s0 + 256, 64);
    _tile_stored(2, s1, 64);
    _tile_stored(3, s1 + 256, 64);
}

/* Adds a packed chunk's products to `sum` [tap][block of outputs][block of inputs][16][16]. */
INLINE void multiply_chunk(const Plan *plan, const bf16 *xs, const bf16 *gs, float *sum) {
    const int steps = plan->steps, blocks_in = plan->blocks_in, stride = plan->stride;
    const size_t pairs = plan->pairs;
    for (int o = 0; o < plan->mine; o += 2)
        for (int i = 0; i < blocks_in; i += 2)
            for (int from = 0; from < steps; from += STRIP) {
                const int strip = from + STRIP < steps ? STRIP : steps - from;
                for (int tap = 0; tap < 9; tap++) {
                    const int dy = tap / 3 - 1, dx = tap % 3 - 1;
                    const int layout = stride == 1 ? 0 : (dy != 0) * 2 + (dx != 0);
                    const int down = stride == 1 ? dy : -(dy < 0), right = stride == 1 ? dx : -(dx < 0);
                    const int q = plan->halo + down * plan->pitch + right;
                    const size_t block = (size_t)(layout * 2 + (q & 1)) * blocks_in + i;
                    const bf16 *b = xs + (block * pairs + (q >> 1)) * 32 + (size_t)from * 512;
                    const bf16 *a = gs + ((size_t)o * steps + from) * 512;
                    float *s = sum + ((size_t)(tap * plan->mine + o) * blocks_in + i) * 256;
                    multiply_tap(a, a + (size_t)steps * 512, b, b + pairs * 32, s, s + blocks_in * 256,
                                 strip);
                }
            }
}

/* Computes one thread's part: the sums over its pictures for its channels. */
static void sum_part(const Plan *shared, const bf16 *x, const bf16 *g, int part, bf16 *xs, bf16 *gs,
                     float *sum) {
    const Plan local = *shared, *plan = &local; /* no store can change this copy, so it stays in registers */
    const int share = part % plan->shares, group = part / plan->shares;
    const size_t map = (size_t)plan->H * plan->W;
    memset(sum, 0, plan->tiles * 1024);
    TileConfig before, config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_storeconfig(&before); /* the configuration that oneDNN uses */
    _tile_loadconfig(&config);
    const int first = (long)plan->chunks * group / plan->groups;
    const int last = (long)plan->chunks * (group + 1) / plan->groups;
    for (int chunk = first; chunk < last; chunk++) {
        const size_t begin = (size_t)chunk * plan->together;
        const int left = plan->N - chunk * plan->together;
        const int pixels = (left < plan->together ? left : plan->together) * plan->H * plan->W;
        pack_x(plan, x + begin * map * plan->layouts * plan->CI, pixels, xs);
        pack_g(plan, g + begin * map * plan->CO, share, pixels, gs);
        multiply_chunk(plan, xs, gs, sum);
    }
    if (before.palette)
        _tile_loadconfig(&before);
    else
        _tile_release();
}

/* Adds up all threads' sums for output channel o, and writes it to dw [CO, 3, 3, CI]. */
static void add_up(const Plan *plan, const float *sums, int o, float *dw) {
    const int block = o / 16, mine = plan->mine, CI = plan->CI;
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

/* Computes dw [CO, 3, 3, CI] from x [N, H stride, W stride, CI] and g [N, H, W, CO], for padding 1 and stride
 * 1 or 2. CI and CO must not exceed MAX_CHANNELS. Returns DONE or NO_MEMORY. */
int conv3x3_weight_gradient(const bf16 *x, const bf16 *g, float *dw, int N, int H, int W, int CI, int CO,
                            int stride, int threads) {
    Plan plan = plan_of(N, H, W, CI, CO, stride, threads);
    const size_t positions = 2 * (size_t)plan.pairs + 2, sum_size = plan.tiles * 256;
    const size_t x_size = (size_t)plan.layouts * 2 * plan.blocks_in * plan.pairs * 32;
    const size_t g_size = (size_t)plan.mine * plan.steps * 512;
    int *g_pixel = allocate(sizeof(int) * positions), *x_pixel = allocate(sizeof(int) * positions);
    float *sums = allocate(sizeof(float) * sum_size * threads);
    bf16 *xs = allocate(sizeof(bf16) * x_size * threads), *gs = allocate(sizeof(bf16) * g_size * threads);
    const int ready = g_pixel && x_pixel && sums && xs && gs;
    if (ready) {
        find_pixels(&plan, g_pixel, x_pixel);
        plan.g_pixel = g_pixel;
        plan.x_pixel = x_pixel;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int part = 0; part < threads; part++)
            sum_part(&plan, x, g, part, xs + x_size * part, gs + g_size * part, sums + sum_size * part);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int o = 0; o < CO; o++) add_up(&plan, sums, o, dw);
    }
    free(g_pixel);
    free(x_pixel);
    free(sums);
    free(xs);
    free(gs);
    return ready ? DONE : NO_MEMORY;
}
