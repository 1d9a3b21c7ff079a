/* CPU kernels for processors that calculate in bfloat16: AVX-512 BF16 (AMD from Zen 4 on, Intel's Cooper Lake), and
 * for the gradient of weights AMX (Intel from Sapphire Rapids on). ops.py says what each computes, in PyTorch.
 *
 * Pictures are bfloat16, stored [N, H, W, C] ("channels last"); statistics and gradients of weights are
 * float32. Threads are OpenMP's, the same that PyTorch uses. Who adds up what does not depend on timing: the
 * same number of threads gives the same bits.
 */
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

/* Linux gives the tiles' state only to processes that ask. 1 where it did. */
int ask_for_tiles(void) {
    const int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* ---- Gradient of a 3x3 convolution's weights --------------------------------------------------------------
 *
 * dw[o][dy][dx][i] = sum over positions p of g[p][o] * x[p + (dy, dx)][i]: for each of the nine taps a matrix
 * product whose inner dimension is all positions of all pictures. Positions are laid out with a border of
 * zeros, (H + 1) x (W + 1) a picture, so that a tap is a constant distance in the layout. With stride 2 there are
 * four such layouts of x, of its even and odd rows and columns, each as large as g's.
 *
 * A tile instruction multiplies A [16 x 32] with B [32 x 16], B's rows interleaved in pairs. Here A is g
 * transposed, B is x, each packed once per chunk of about a thousand positions: they stay in the L2 cache
 * while all nine taps use them. x is packed twice, pairs beginning at even and at odd positions, so that every
 * tap reads whole cache lines.
 */

typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } TileConfig;

enum { CHUNK = 1024, STRIP = 8 }; /* positions packed at a time; tiles of 32 positions between two taps */

/* 16 channels of two positions: bf16 a[c], b[c] side by side in 32 bits. */
static inline __m512i interleave(const bf16 *a, const bf16 *b, __mmask16 mask) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Which of 16 channels from `first` on there are. */
static inline __mmask16 channel_mask(int first, int channels) {
    const int left = channels - first;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
}

static inline void transpose(__m512i r[16]) { /* 16 x 16 of 32 bits */
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

/* x [N, H step, W step, CI], g [N, H, W, CO] (CI, CO <= 4096) -> dw [CO, 3, 3, CI]. Padding 1, stride `step`. */
void conv3x3_weight_gradient(const bf16 *x, const bf16 *g, float *dw, int N, int H, int W, int CI, int CO,
                             int step, int threads) {
    static const bf16 zeros[4096 + 16];
    const int stride = W + 1, picture = (H + 1) * stride;
    int together = CHUNK / picture;
    together = together < 1 ? 1 : together > N ? N : together;
    const int steps = (together * picture + 31) / 32;        /* tiles of 32 positions in a chunk */
    const int halo = stride + 1 + (stride & 1);              /* zeros before the first position; even */
    const int pairs = (halo + 32 * steps + stride + 4) / 2 + 1, layouts = step * step;
    const int blocks_in = (CI + 31) / 32 * 2, blocks_out = (CO + 31) / 32 * 2; /* of 16 channels, even */
    const int chunks = (N + together - 1) / together;

    /* The pixel of the chunk at each position, -1 where there is none. */
    int *pixel = malloc(sizeof(int) * (2 * pairs + 2)); /* of g */
    int *corner = malloc(sizeof(int) * (2 * pairs + 2)); /* of x */
    for (int q = 0; q < 2 * pairs + 2; q++) {
        const int p = q - halo, n = p / picture, row = p % picture / stride, column = p % stride;
        const int outside = p < 0 || n >= together || row >= H || column >= W;
        pixel[q] = outside ? -1 : (n * H + row) * W + column;
        corner[q] = outside ? -1 : (n * H * step + row * step) * W * step + column * step;
    }
    /* Threads share the output channels while sums would not fit a core's cache, and the pictures. */
    int shares = 1;
    while (threads % (2 * shares) == 0 && blocks_out / 2 % (2 * shares) == 0 &&
           36L * CI * CO / shares > 1L << 20)
        shares *= 2;
    const int mine = blocks_out / shares, groups = threads / shares;
    const size_t tiles = (size_t)9 * mine * blocks_in;
    float *sums = allocate(tiles * 1024 * threads);

#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), share = thread % shares, group = thread / shares;
        float *sum = sums + tiles * 256 * thread; /* [tap][block out][block in][16][16] */
        bf16 *xs = allocate((size_t)layouts * 2 * blocks_in * pairs * 64);
        bf16 *gs = allocate((size_t)mine * steps * 1024);
        memset(sum, 0, tiles * 1024);
        TileConfig before, config = {.palette = 1};
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
        _tile_storeconfig(&before); /* oneDNN's: put back at the end */
        _tile_loadconfig(&config);

        const int first = (long)chunks * group / groups, last = (long)chunks * (group + 1) / groups;
        for (int chunk = first; chunk < last; chunk++) {
            const size_t begin = (size_t)chunk * together;
            const bf16 *xc = x + begin * H * W * layouts * CI, *gc = g + begin * H * W * CO;
            const int left = N - chunk * together, pixels = (left < together ? left : together) * H * W;
#define THERE(q) (pixel[q] >= 0 && pixel[q] < pixels)
#define X_AT(q) (THERE(q) ? xc + (size_t)(corner[q] + shift) * CI : zeros)
#define G_AT(q) (THERE(q) ? gc + (size_t)pixel[q] * CO : zeros)
            for (int r = 0; r < layouts * pairs; r++) {
                const int layout = r / pairs, q = r % pairs * 2;
                const int shift = layout / 2 * W * step + layout % 2;
                const bf16 *a = X_AT(q), *b = X_AT(q + 1), *c = X_AT(q + 2);
                for (int i = 0; i < blocks_in; i++) {
                    const __mmask16 mask = channel_mask(16 * i, CI);
                    bf16 *even = xs + (((size_t)layout * 2 * blocks_in + i) * pairs + q / 2) * 32;
                    bf16 *odd = even + (size_t)blocks_in * pairs * 32;
                    _mm512_store_si512(even, interleave(a + 16 * i, b + 16 * i, mask));
                    _mm512_store_si512(odd, interleave(b + 16 * i, c + 16 * i, mask));
                }
            }
            for (int k = 0; k < steps; k++)
                for (int o = 0; o < mine; o++) {
                    const int channel = 16 * (share * mine + o);
                    const __mmask16 mask = channel_mask(channel, CO);
                    __m512i tile[16];
                    for (int j = 0; j < 16; j++) {
                        const int q = halo + 32 * k + 2 * j;
                        tile[j] = interleave(G_AT(q) + channel, G_AT(q + 1) + channel, mask);
                    }
                    transpose(tile);
                    bf16 *to = gs + ((size_t)o * steps + k) * 512;
                    for (int j = 0; j < 16; j++) _mm512_store_si512(to + 32 * j, tile[j]);
                }
#undef THERE
#undef X_AT
#undef G_AT
            for (int o = 0; o < mine; o += 2)
                for (int i = 0; i < blocks_in; i += 2)
                    for (int from = 0; from < steps; from += STRIP) {
                        const int to = from + STRIP < steps ? from + STRIP : steps;
                        for (int tap = 0; tap < 9; tap++) { /* 32 x 32 channels: four tiles of sums */
                            const int dy = tap / 3 - 1, dx = tap % 3 - 1;
                            const int layout = step == 1 ? 0 : (dy != 0) * 2 + (dx != 0);
                            const int down = step == 1 ? dy : -(dy < 0), right = step == 1 ? dx : -(dx < 0);
                            const int q = halo + down * stride + right;
                            const size_t block = (size_t)(layout * 2 + (q & 1)) * blocks_in + i;
                            const bf16 *b0 = xs + (block * pairs + (q >> 1)) * 32;
                            const bf16 *b1 = b0 + (size_t)pairs * 32;
                            const bf16 *a0 = gs + (size_t)o * steps * 512, *a1 = a0 + (size_t)steps * 512;
                            float *s0 = sum + ((size_t)(tap * mine + o) * blocks_in + i) * 256;
                            float *s1 = s0 + blocks_in * 256;
                            _tile_loadd(0, s0, 64);
                            _tile_loadd(1, s0 + 256, 64);
                            _tile_loadd(2, s1, 64);
                            _tile_loadd(3, s1 + 256, 64);
                            for (int k = from; k < to; k++) {
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
                    }
        }
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
        free(xs);
        free(gs);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int o = 0; o < CO; o++) {
            const int block = o / 16;
            const float *from = sums + tiles * 256 * (block / mine);
            for (int tap = 0; tap < 9; tap++)
                for (int i = 0; i < CI; i++) {
                    const size_t at =
                        ((size_t)(tap * mine + block % mine) * blocks_in + i / 16) * 256 + o % 16 * 16 + i % 16;
                    float total = 0;
                    for (int n = 0; n < groups; n++) total += from[tiles * 256 * shares * n + at];
                    dw[((size_t)o * 9 + tap) * CI + i] = total;
                }
        }
    }
    free(sums);
    free(pixel);
    free(corner);
}

/* ---- 3x3 convolutions with fewer multiplications ----------------------------------------------------------
 *
 * Winograd's F(4x4, 3x3) (Lavin & Gray 2016, https://arxiv.org/abs/1509.09308): 4x4 results come from 6x6 inputs
 * by 36 multiplications a pair of channels, where 144 would do. A picture's map is cut into such tiles; each tile
 * is transformed, the 36 points of all tiles are 36 matrix products over the channels, and their results are
 * transformed back. The points are 0, +-11/16, +-3/2 and infinity: with bfloat16 factors the result is off by 1.2 % (in
 * the mean square), where the usual 0, +-1, +-2 are off by more than twice as much.
 *
 * Where 4 does not divide a side, tiles at its end are 3 or 2 high or wide, and need 5 or 4 points: 7 is 4 + 3, 5 is
 * 3 + 2. Theirs are those of a tile of 4 without -3/2, and without either, so that the weights' are the same; what
 * that changes in the weights' factors, their inputs' take over. Products are over the tiles that have a point.
 *
 * Vectors multiply two neighbouring values of the summed index at a time: those lie side by side.
 */

#define A1 0.6875f
#define A2 (A1 * A1)
#define A3 (A2 * A1)
#define B1 1.5f
#define B2 (B1 * B1)
#define B3 (B2 * B1)

enum { POINTS = 36, ROWS = 8, TILES = 32, WIDE = 64 }; /* TILES, WIDE: tiles and outputs whose products stay in L2 */
enum { TRANSFORMED = 2 << 20, MOST_SUMS = 8 << 20 }; /* bytes a thread, of the weights' gradient: points at a time, and sums */

typedef struct { int height, width, down, across; } Map; /* pixels, and tiles */

static inline Map map_of(int H, int W) { return (Map){H, W, (H + 3) / 4, (W + 3) / 4}; }

/* Where tile number i of a side begins, and how many pixels it has. */
static inline int tile_start(int side, int i) { return side % 4 == 1 && side > 1 && i == side / 4 ? side - 2 : 4 * i; }

static inline int tile_size(int side, int i) {
    const int left = side - 4 * i;
    return left == 5 ? 3 : left == 1 ? 2 : left < 4 ? left : 4; /* a side of 1 is half of a tile of 2 */
}

typedef struct { int picture, top, left, rows, columns; } Tile;

static inline Tile tile_of(Map map, int picture, int place) {
    const int i = place / map.across, j = place % map.across;
    return (Tile){picture, tile_start(map.height, i), tile_start(map.width, j), tile_size(map.height, i), tile_size(map.width, j)};
}

static inline int has_point(int size, int i) { return size == 4 || (i != 4 && (size == 3 || i != 3)); }

/* Which of the 36 points a tile has. */
typedef struct { int count; uint8_t at[POINTS]; } Points;

static void list_points(Points lists[3][3]) {
    for (int rows = 2; rows <= 4; rows++)
        for (int columns = 2; columns <= 4; columns++) {
            Points *list = &lists[rows - 2][columns - 2];
            list->count = 0;
            for (int p = 0; p < POINTS; p++)
                if (has_point(rows, p / 6) && has_point(columns, p % 6)) list->at[list->count++] = p;
        }
}

/* call(size), a constant, for the compiler to unroll. */
#define BY_SIZE(size, call)       \
    switch (size) {               \
        case 4: call(4); break;   \
        case 3: call(3); break;   \
        default: call(2);         \
    }

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* compiled once, not for every caller */

static inline __m512 times(__m512 a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }

static inline __m512 plus_times(__m512 a, __m512 b, float c) { return _mm512_fmadd_ps(b, _mm512_set1_ps(c), a); }

/* size + 2 inputs -> as many of six points: the coefficients of the products of all (x - point) but one, times those of
 * what is left out. */
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

/* Points -> `size` results: sums of their powers. */
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

/* `size` gradients of results -> those of points: the transpose of `results`. */
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

/* 1 / the product of a point's distances to the others. */
#define F0 (1 / (A2 * B2))
#define FA (1 / (2 * A2 * (A2 - B2)))
#define FB (1 / (2 * B2 * (B2 - A2)))

/* Three weights -> six points. */
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

/* Gradients of six points -> those of three weights: the transpose of `weight_points`. */
static inline void weight_gradients(const __m512 *t, int from, __m512 *w, int to) {
    const __m512 pa = _mm512_add_ps(t[from], t[2 * from]), ma = _mm512_sub_ps(t[from], t[2 * from]);
    const __m512 pb = _mm512_add_ps(t[3 * from], t[4 * from]), mb = _mm512_sub_ps(t[3 * from], t[4 * from]);
    w[0] = plus_times(plus_times(times(t[0], F0), pa, FA), pb, FB);
    w[to] = plus_times(times(ma, A1 * FA), mb, B1 * FB);
    w[2 * to] = plus_times(plus_times(t[5 * from], pa, A2 * FA), pb, B2 * FB);
}

/* 16 bfloat16 as floats: each in the upper half of 32 bits. */
static inline __m512 load_bf16(__mmask16 mask, const bf16 *from) {
    const __m512i places = _mm512_set_epi32(15 << 16, 14 << 16, 13 << 16, 12 << 16, 11 << 16, 10 << 16, 9 << 16, 8 << 16,
                                            7 << 16, 6 << 16, 5 << 16, 4 << 16, 3 << 16, 2 << 16, 1 << 16, 0);
    const __m512i values = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(mask, from));
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, places, values));
}

/* 16 floats each, as bfloat16 in pairs: a[0], b[0], a[1], b[1], ... */
static inline __m512i side_by_side(__m512 a, __m512 b) {
    const __m512i places = _mm512_set_epi32(31 << 16 | 15, 30 << 16 | 14, 29 << 16 | 13, 28 << 16 | 12, 27 << 16 | 11, 26 << 16 | 10,
                                            25 << 16 | 9, 24 << 16 | 8, 23 << 16 | 7, 22 << 16 | 6, 21 << 16 | 5, 20 << 16 | 4,
                                            19 << 16 | 3, 18 << 16 | 2, 17 << 16 | 1, 16 << 16);
    return _mm512_permutexvar_epi16(places, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* Values [N, height, width, C]. With `which` they are gradients of maxima, [N, height / 2, width / 2, C]: each belongs to one
 * pixel of its 2x2 window, in reading order, and the others' are 0. */
typedef struct { const bf16 *values; const uint8_t *which; int height, width, channels; } Pictures;

typedef struct { const bf16 *values; const uint8_t *which; int corner; } Pixel;

/* A tile's pixels with `border` around it: six to a row, zeros where there is none. */
static inline void find_tile(Pictures from, Tile tile, int border, Pixel *pixels) {
    static const bf16 zeros[4096 + 16];
    const int halve = from.which != NULL, height = from.height >> halve, width = from.width >> halve;
    const int top = tile.top - border, left = tile.left - border, columns = tile.columns + 2 * border;
    const unsigned rows_there = height << halve, columns_there = width << halve;
    for (int i = 0; i < tile.rows + 2 * border; i++) {
        const unsigned row = top + i; /* a negative one is a very large one */
        const size_t line = ((size_t)tile.picture * height + (row >> halve)) * width;
        for (int j = 0; j < columns; j++) {
            const unsigned column = left + j;
            const int inside = row < rows_there && column < columns_there;
            const size_t at = (line + (column >> halve)) * from.channels;
            Pixel *pixel = pixels + 6 * i + j;
            pixel->values = inside ? from.values + at : zeros;
            if (!halve) continue;
            pixel->which = inside ? from.which + at : (const uint8_t *)zeros;
            pixel->corner = row % 2 * 2 + column % 2;
        }
    }
}

INLINE __m512 load_pixel(int pooled, Pixel pixel, int channel, __mmask16 mask) {
    if (pooled)
        mask = _mm_mask_cmpeq_epi8_mask(mask, _mm_maskz_loadu_epi8(mask, pixel.which + channel), _mm_set1_epi8(pixel.corner));
    return load_bf16(mask, pixel.values + channel);
}

enum { RESULTS, INPUTS }; /* kinds of a tile's pixels: its results' gradients, or its inputs, with a border of one */

INLINE void points_of(int kind, int size, const __m512 *d, int from, __m512 *t, int to) {
    if (kind == INPUTS) input_points(size, d, from, t, to);
    else result_points(size, d, from, t, to);
}

INLINE void read_points(int kind, int pooled, int size, const Pixel *pixels, int channel, __mmask16 mask, __m512 *t) {
    __m512 d[6];
#pragma GCC unroll 6
    for (int i = 0; i < size + 2 * kind; i++) d[i] = load_pixel(pooled, pixels[6 * i], channel, mask);
    points_of(kind, size, d, 1, t, 6);
}

/* What becomes of points: they are kept; or stored as bfloat16, alone or beside those that were kept of another tile. */
enum { KEEP, STORE, PAIR };

INLINE void put(int how, __m512 value, __m512 *kept, bf16 *to) {
    if (how == KEEP) *kept = value;
    else if (how == STORE) _mm256_store_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
    else _mm512_store_si512(to, side_by_side(*kept, value));
}

INLINE void tile_points(int kind, int pooled, int how, int rows, int columns, const Pixel *pixels, int channel, __mmask16 mask,
                        __m512 *kept, bf16 *const *to, size_t offset) {
    __m512 half[36], points[6];
#define DOWN(size) \
    for (int j = 0; j < columns + 2 * kind; j++) read_points(kind, pooled, size, pixels + j, channel, mask, half + j)
#define ACROSS(size)                                                                                                \
    for (int i = 0; i < 6; i++) {                                                                                   \
        if (!has_point(rows, i)) continue;                                                                          \
        points_of(kind, size, half + 6 * i, 1, points, 1);                                                          \
        for (int j = 0; j < 6; j++)                                                                                 \
            if (has_point(size, j)) put(how, points[j], kept + 6 * i + j, to[6 * i + j] + offset);                  \
    }
    BY_SIZE(rows, DOWN)
    BY_SIZE(columns, ACROSS)
#undef DOWN
#undef ACROSS
}

/* 16 channels from `channel` on of a tile (INPUTS: and what is around it), as points: each at `to` its place + offset. */
typedef void Transform(Tile tile, const Pixel *pixels, int channel, __mmask16 mask, __m512 *kept, bf16 *const *to, size_t offset);

#define TRANSFORM(name, kind, pooled, how)                                                                           \
    APART void name(Tile tile, const Pixel *pixels, int channel, __mmask16 mask, __m512 *kept, bf16 *const *to,      \
                    size_t offset) {                                                                                 \
        if (tile.rows == 4 && tile.columns == 4) /* most are */                                                      \
            tile_points(kind, pooled, how, 4, 4, pixels, channel, mask, kept, to, offset);                           \
        else tile_points(kind, pooled, how, tile.rows, tile.columns, pixels, channel, mask, kept, to, offset);       \
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
#define DOWN(size)                                                                                                  \
    for (int j = 0; j < 6; j++) {                                                                                   \
        if (!has_point(columns, j)) continue;                                                                       \
        for (int i = 0; i < 6; i++)                                                                                 \
            if (has_point(size, i)) column[i] = _mm512_load_ps(points[6 * i + j] + channel);                        \
        results(size, column, 1, half + j, 6);                                                                      \
    }
#define ACROSS(size) for (int i = 0; i < rows; i++) results(size, half + 6 * i, 1, result + 4 * i, 1)
    BY_SIZE(rows, DOWN)
    BY_SIZE(columns, ACROSS)
#undef DOWN
#undef ACROSS
}

/* 16 channels' points, each at its place + channel -> a tile's results, four to a row. */
APART void transform_result(Tile tile, const float *const *points, int channel, __m512 *result) {
    if (tile.rows == 4 && tile.columns == 4) result_of(4, 4, points, channel, result); /* most are */
    else result_of(tile.rows, tile.columns, points, channel, result);
}

/* ROWS x 32 sums, `row` floats apart (+)= a times b. Two neighbours of a, 32 bits, are at a[r * down + k * along]; b0
 * and b1 have 16 outputs with two neighbours each. */
static inline void multiply(float *sums, size_t row, const int32_t *a, size_t down, size_t along, const bf16 *b0,
                            const bf16 *b1, int pairs, int add) {
    __m512 left[ROWS], right[ROWS];
    for (int r = 0; r < ROWS; r++) {
        left[r] = add ? _mm512_load_ps(sums + r * row) : _mm512_setzero_ps();
        right[r] = add ? _mm512_load_ps(sums + r * row + 16) : _mm512_setzero_ps();
    }
    for (int k = 0; k < pairs; k++) {
        const __m512bh x0 = (__m512bh)_mm512_load_si512(b0 + 32 * k), x1 = (__m512bh)_mm512_load_si512(b1 + 32 * k);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const __m512bh y = (__m512bh)_mm512_set1_epi32(a[r * down + k * along]);
            left[r] = _mm512_dpbf16_ps(left[r], y, x0);
            right[r] = _mm512_dpbf16_ps(right[r], y, x1);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        _mm512_store_ps(sums + r * row, left[r]);
        _mm512_store_ps(sums + r * row + 16, right[r]);
    }
}

static inline int rounded(int value, int to) { return (value + to - 1) / to * to; }

/* w [inputs, 3, 3, outputs] -> u [36, outputs / 16, inputs / 2, 16, 2], with zeros where channels end. `flip` turns
 * the filters about. */
static void transform_weights(const float *w, bf16 *u, int inputs, int outputs, int flip, int threads) {
    const int pairs = rounded(inputs, 16) / 2, blocks = rounded(outputs, 32) / 16;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int b = 0; b < blocks; b++)
        for (int pair = 0; pair < pairs; pair++) {
            __m512 points[2][36];
            for (int s = 0; s < 2; s++) {
                const int input = 2 * pair + s;
                const __mmask16 mask = input < inputs ? channel_mask(16 * b, outputs) : 0;
                __m512 taps[9], half[18];
                for (int tap = 0; tap < 9; tap++)
                    taps[tap] = _mm512_maskz_loadu_ps(mask, w + ((size_t)input * 9 + (flip ? 8 - tap : tap)) * outputs + 16 * b);
                for (int j = 0; j < 3; j++) weight_points(taps + j, 3, half + j, 3);
                for (int i = 0; i < 6; i++) weight_points(half + 3 * i, 1, points[s] + 6 * i, 1);
            }
            for (int p = 0; p < POINTS; p++)
                _mm512_store_si512(u + (((size_t)p * blocks + b) * pairs + pair) * 32, side_by_side(points[0][p], points[1][p]));
        }
}

/* bfloat16 as 16-bit integers in the same order; its own inverse. */
static inline __m256i sortable_half(__m256i line) {
    return _mm256_xor_si256(line, _mm256_srli_epi16(_mm256_srai_epi16(line, 15), 1));
}

/* Where a tile's results belong in y [N, height, width, channels], four to a row; or those of its 2x2 windows, in the
 * place of their first pixel. */
static inline void place_results(Tile tile, Map map, int window, int channels, size_t *at) {
    for (int i = 0; i < tile.rows; i += window)
        for (int j = 0; j < tile.columns; j += window) {
            const size_t row = (size_t)tile.picture * (map.height / window) + (tile.top + i) / window;
            at[4 * i + j] = (row * (map.width / window) + (tile.left + j) / window) * channels;
        }
}

/* 16 channels of them, to y + channel: as they are; or the windows' maxima, and which they are. */
static inline void store_results(Tile tile, Map map, const __m512 *result, const size_t *at, bf16 *y, uint8_t *which, int channel,
                                 __mmask16 mask) {
    if (!which) {
        for (int i = 0; i < tile.rows && tile.top + i < map.height; i++)
            for (int j = 0; j < tile.columns && tile.left + j < map.width; j++)
                _mm256_mask_storeu_epi16(y + at[4 * i + j] + channel, mask, (__m256i)_mm512_cvtneps_pbh(result[4 * i + j]));
        return;
    }
    for (int i = 0; i < tile.rows; i += 2)
        for (int j = 0; j < tile.columns; j += 2) {
            __m256i best = sortable_half((__m256i)_mm512_cvtneps_pbh(result[4 * i + j])), index = _mm256_setzero_si256();
            for (int k = 1; k < 4; k++) {
                const __m256i value = sortable_half((__m256i)_mm512_cvtneps_pbh(result[4 * (i + k / 2) + j + k % 2]));
                index = _mm256_mask_mov_epi16(index, _mm256_cmpgt_epi16_mask(value, best), _mm256_set1_epi16(k));
                best = _mm256_max_epi16(best, value);
            }
            _mm256_mask_storeu_epi16(y + at[4 * i + j] + channel, mask, sortable_half(best));
            _mm_mask_storeu_epi8(which + at[4 * i + j] + channel, mask, _mm256_cvtepi16_epi8(index));
        }
}

/* The convolution, padding 1, of x with w [CI, 3, 3, CO] float32 -> y [N, H, W, CO]. x is [N, H, W, CI], or with `x_which` the
 * gradient of maxima, [N, H/2, W/2, CI]. With `y_which` [N, H/2, W/2, CO], y are the maxima of 2x2 windows and that is which. */
void winograd(const bf16 *x, const uint8_t *x_which, const float *w, bf16 *y, uint8_t *y_which, int N, int H, int W,
              int CI, int CO, int flip, int threads) {
    const Pictures pictures = {x, x_which, H, W, CI};
    Transform *const store = x_which ? store_pooled_inputs : store_inputs;
    const Map map = y_which ? map_of(H / 2 * 2, W / 2 * 2) : map_of(H, W); /* no window has an odd last row */
    const int places = map.down * map.across;
    const long tiles = (long)N * places;
    const int inputs = rounded(CI, 16), outputs = rounded(CO, 32), wide = outputs % WIDE ? 32 : WIDE;
    bf16 *u = allocate(sizeof(bf16) * POINTS * inputs * outputs);
    transform_weights(w, u, CI, CO, flip, threads);
    Points lists[3][3];
    list_points(lists);
    /* A line more than a power of two apart: or all 36 points would fall into the same set of the cache. */
    const size_t v_point = TILES * inputs + 32, m_point = TILES * wide + 16;
#pragma omp parallel num_threads(threads)
    {
        bf16 *v = allocate(sizeof(bf16) * POINTS * v_point);
        float *m = allocate(sizeof(float) * POINTS * m_point);
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += TILES) {
            const int count = tiles - first < TILES ? tiles - first : TILES;
            int counts[POINTS] = {0}; /* of the tiles so far that have a point */
            Tile tiles_here[TILES];
            const float *from[TILES][POINTS]; /* where the products of each tile's points are, */
            size_t at[TILES][16];             /* and where its results belong */
            for (int t = 0; t < count; t++) {
                const Tile tile = tiles_here[t] = tile_of(map, (first + t) / places, (first + t) % places);
                const Points *list = &lists[tile.rows - 2][tile.columns - 2];
                Pixel pixels[36];
                bf16 *to[POINTS];
                find_tile(pictures, tile, 1, pixels);
                for (int k = 0; k < list->count; k++) {
                    const int p = list->at[k], slot = counts[p]++;
                    to[p] = v + p * v_point + slot * inputs;
                    from[t][p] = m + p * m_point + slot * wide;
                }
                place_results(tile, map, y_which ? 2 : 1, CO, at[t]);
                for (int c = 0; c < inputs; c += 16) store(tile, pixels, c, channel_mask(c, CI), NULL, to, c);
            }
            for (int o = 0; o < outputs; o += wide) {
                for (int p = 0; p < POINTS; p++)
                    for (int c = 0; c < wide; c += 32) {
                        const bf16 *b = u + ((size_t)p * outputs + o + c) * inputs;
                        for (int t = 0; t < counts[p]; t += ROWS) /* those past the end are of an earlier chunk: not read */
                            multiply(m + p * m_point + t * wide + c, wide, (const int32_t *)(v + p * v_point + t * inputs),
                                     inputs / 2, 1, b, b + 16 * inputs, inputs / 2, 0);
                    }
                for (int t = 0; t < count; t++)
                    for (int c = 0; c < wide && o + c < CO; c += 16) {
                        __m512 result[16];
                        transform_result(tiles_here[t], from[t], c, result);
                        store_results(tiles_here[t], map, result, at[t], y, y_which, o + c, channel_mask(o + c, CO));
                    }
            }
        }
        free(v);
        free(m);
    }
    free(u);
}

/* A pair of tiles, at the same place of two of the N pictures: of channels from `begin` to `end`, each point's to its place,
 * 16 channels `along`. Where there is no second picture, zeros. */
static void transform_pair(int kind, Pictures pictures, int N, int begin, int end, Tile tile, bf16 *const *to, size_t along) {
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

/* Its gradient with regard to w: x [N, H, W, CI], g [N, H, W, CO] (or with `which` of maxima, [N, H/2, W/2, CO]) ->
 * dw [CO, 3, 3, CI]. The products sum over pairs of tiles, those at the same place of two pictures, which have the same
 * points. Threads share the pictures, and the output channels while a thread's sums would be too large; what one
 * transforms no other reads: where two cores are far apart, that took the time of one thread. */
void winograd_weight_gradient(const bf16 *x, const bf16 *g, const uint8_t *which, float *dw, int N, int H, int W, int CI, int CO,
                              int threads) {
    const Pictures from = {x, NULL, H, W, CI}, gradients = {g, which, H, W, CO};
    const Map map = which ? map_of(H / 2 * 2, W / 2 * 2) : map_of(H, W);
    const int places = map.down * map.across;
    const long pairs = (N + 1L) / 2 * places;
    const int inputs = rounded(CI, 32), outputs = rounded(CO, 16);
    int shares = 1;
    while (threads % (2 * shares) == 0 && outputs % (32 * shares) == 0 && 4L * POINTS * inputs * outputs / shares > MOST_SUMS)
        shares *= 2;
    const int groups = threads / shares, mine = outputs / shares;
    int chunk = TRANSFORMED / (POINTS * 4 * (inputs + mine)) / 8 * 8; /* pairs transformed at a time */
    chunk = chunk < 16 ? 16 : chunk > 512 ? 512 : chunk;
    const size_t point = (size_t)mine * inputs, v_point = 2 * chunk * inputs + 32, z_point = 2 * chunk * mine + 32;
    float *sums = allocate(sizeof(float) * POINTS * point * threads);
    Points lists[3][3];
    list_points(lists);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const int share = part % shares, group = part / shares;
        const long begin = pairs * group / groups, end = pairs * (group + 1) / groups;
        float *sum = sums + POINTS * point * part; /* [point][inputs / 32][outputs][32] */
        /* [16 channels][pair of tiles][16][2], a point after the other */
        bf16 *v = allocate(sizeof(bf16) * POINTS * v_point), *z = allocate(sizeof(bf16) * POINTS * z_point);
        if (begin == end) memset(sum, 0, sizeof(float) * POINTS * point);
        for (long first = begin; first < end; first += chunk) {
            const int count = end - first < chunk ? end - first : chunk;
            uint16_t slots[POINTS] = {0}; /* how many pairs so far have a point */
            for (int k = 0; k < count; k++) {
                const Tile tile = tile_of(map, (first + k) / places * 2, (first + k) % places);
                const Points *list = &lists[tile.rows - 2][tile.columns - 2];
                bf16 *to_v[POINTS], *to_z[POINTS];
                for (int l = 0; l < list->count; l++) {
                    const int p = list->at[l], slot = slots[p]++;
                    to_v[p] = v + p * v_point + 32 * slot;
                    to_z[p] = z + p * z_point + 32 * slot;
                }
                transform_pair(INPUTS, from, N, 0, inputs, tile, to_v, 32 * chunk);
                transform_pair(RESULTS, gradients, N, share * mine, (share + 1) * mine, tile, to_z, 32 * chunk);
            }
            for (int p = 0; p < POINTS; p++)
                for (int i = 0; i < inputs; i += 32) {
                    const bf16 *b = v + p * v_point + 2 * i * chunk;
                    for (int o = 0; o < mine; o += ROWS)
                        multiply(sum + p * point + (size_t)i * mine + 32 * o, 32,
                                 (const int32_t *)(z + p * z_point + 2 * (o / 16 * 16) * chunk) + o % 16, 1, 16, b, b + 32 * chunk,
                                 slots[p], first > begin);
                }
        }
        free(v);
        free(z);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int o = 0; o < CO; o++)
        for (int i = 0; i < CI; i += 16) {
            const __mmask16 mask = channel_mask(i, CI);
            const float *sum = sums + POINTS * point * (o / mine) + (size_t)(i / 32) * 32 * mine + 32 * (o % mine) + i % 32;
            __m512 points[36], half[18], taps[9];
            for (int p = 0; p < POINTS; p++) {
                points[p] = _mm512_load_ps(sum + p * point);
                for (int n = 1; n < groups; n++)
                    points[p] = _mm512_add_ps(points[p], _mm512_load_ps(sum + p * point + POINTS * point * shares * n));
            }
            for (int j = 0; j < 6; j++) weight_gradients(points + j, 6, half + j, 6);
            for (int k = 0; k < 3; k++) weight_gradients(half + 6 * k, 1, taps + 3 * k, 1);
            for (int tap = 0; tap < 9; tap++) _mm512_mask_storeu_ps(dw + ((size_t)o * 9 + tap) * CI + i, mask, taps[tap]);
        }
    free(sums);
}

/* ---- Max-pooling, batch normalisation, addition, activation: one pass where PyTorch takes three to five -----
 *
 * Each channel is scaled and shifted, so that y = act(scale[c] * pool(x)[c] + shift[c] + add). C is a multiple
 * of 32: a cache line of channels is worked on at a time.
 */

enum { NONE, RELU, SILU };

typedef struct { __m512 low, high; } Line; /* 32 channels */

static inline __m512i raw(const bf16 *from) { return _mm512_loadu_si512(from); }

static inline Line widen(__m512i line) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(line));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1));
    return (Line){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}

static inline __m512i narrow(Line line) { return (__m512i)_mm512_cvtne2ps_pbh(line.high, line.low); }

static inline Line floats(const float *from) { return (Line){_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)}; }

static inline Line multiply_add(Line a, Line b, Line c) {
    return (Line){_mm512_fmadd_ps(a.low, b.low, c.low), _mm512_fmadd_ps(a.high, b.high, c.high)};
}

static inline Line plus(Line a, Line b) {
    return (Line){_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
}

/* 1 / (1 + exp(-x)), to 1.4e-4, less than bfloat16's rounding. */
static inline __m512 sigmoid(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(t, 0), part = _mm512_sub_ps(t, whole); /* in [-0.5, 0.5] */
    __m512 power = _mm512_set1_ps(5.503e-2f); /* 2^part */
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.42261e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.93253e-1f));
    power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.999951f));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1), _mm512_scalef_ps(power, whole)));
}

static inline __m512 activate(__m512 z, int act) {
    if (act == RELU) return _mm512_max_ps(z, _mm512_setzero_ps());
    if (act == SILU) return _mm512_mul_ps(z, sigmoid(z));
    return z;
}

/* The derivative of SiLU at z, times dy. */
static inline __m512 silu_backward(__m512 dy, __m512 z) {
    const __m512 s = sigmoid(z), one = _mm512_set1_ps(1);
    return _mm512_mul_ps(dy, _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one)));
}

/* bfloat16 as 16-bit integers in the same order; its own inverse. */
static inline __m512i sortable(__m512i line) {
    return _mm512_xor_si512(line, _mm512_srli_epi16(_mm512_srai_epi16(line, 15), 1));
}

/* The largest of a 2x2 window's four values, and which it is: the first of them, 0 to 3 in reading order. */
static inline __m512i largest(const bf16 *corner, size_t right, size_t down, __m512i *which) {
    __m512i best = sortable(raw(corner)), index = _mm512_setzero_si512();
    const size_t others[3] = {right, down, down + right};
    for (int i = 0; i < 3; i++) {
        const __m512i value = sortable(raw(corner + others[i]));
        index = _mm512_mask_mov_epi16(index, _mm512_cmpgt_epi16_mask(value, best), _mm512_set1_epi16(i + 1));
        best = _mm512_max_epi16(best, value);
    }
    *which = index;
    return sortable(best);
}

static inline void add_to_doubles(double *to, Line value) {
    float lanes[32];
    _mm512_storeu_ps(lanes, value.low);
    _mm512_storeu_ps(lanes + 16, value.high);
    for (int i = 0; i < 32; i++) to[i] += lanes[i];
}

static void add_up(double *sums, const double *partial, int count, int threads) {
    for (int i = 0; i < count; i++) {
        sums[i] = 0;
        for (int t = 0; t < threads; t++) sums[i] += partial[(size_t)t * count + i];
    }
}

/* x [N, H, W, C] -> pooled [N, H/2, W/2, C] and which [same], where pool is 2; else pooled is x itself.
 * sums [2, C]: of the pooled values and of their squares. */
void pool_and_sum(const bf16 *x, bf16 *pooled, uint8_t *which, double *sums, int N, int H, int W, int C,
                  int pool, int threads) {
    const int h = H / pool, w = W / pool;
    double *partial = calloc((size_t)threads * 2 * C, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        double *mine = partial + (size_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c += 32) {
                Line sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}, square = sum;
                for (int row = 0; row < h; row++) {
                    const bf16 *from = x + ((size_t)n * H + pool * row) * W * C + c;
                    size_t at = ((size_t)n * h + row) * w * C + c;
                    for (int column = 0; column < w; column++, at += C, from += pool * C) {
                        __m512i line, index;
                        if (pool == 2) {
                            line = largest(from, C, (size_t)W * C, &index);
                            _mm512_storeu_si512(pooled + at, line);
                            _mm256_storeu_si256((__m256i *)(which + at), _mm512_cvtepi16_epi8(index));
                        } else
                            line = raw(from);
                        const Line value = widen(line);
                        sum = plus(sum, value);
                        square = multiply_add(value, value, square);
                    }
                }
                add_to_doubles(mine + c, sum);
                add_to_doubles(mine + C + c, square);
            }
    }
    add_up(sums, partial, 2 * C, threads);
    free(partial);
}

/* y = act(scale * pool(x) + shift + add): x [N, H, W, C], y and add (or NULL) [N, H/pool, W/pool, C]. */
void scale_and_activate(const bf16 *x, const bf16 *add, bf16 *y, const float *scale, const float *shift, int N,
                        int H, int W, int C, int pool, int act, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++)
        for (int row = 0; row < h; row++) {
            const bf16 *from = x + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, from += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, from += 32) {
                    __m512i index;
                    const __m512i line = pool == 2 ? largest(from, C, (size_t)W * C, &index) : raw(from);
                    Line z = multiply_add(widen(line), floats(scale + c), floats(shift + c));
                    if (add) z = plus(z, widen(raw(add + at)));
                    _mm512_storeu_si512(y + at, narrow((Line){activate(z.low, act), activate(z.high, act)}));
                }
        }
}

/* dz, the loss' gradient before the activation, from the one behind it: dy, y, pooled, dz [N, positions, C].
 * sums [2, C]: of dz, and of dz * pooled. ReLU asks its result y, SiLU what it was given. */
void backward_sums(const bf16 *dy, const bf16 *pooled, const bf16 *y, bf16 *dz, const float *scale,
                   const float *shift, double *sums, int N, int positions, int C, int act, int threads) {
    double *partial = calloc((size_t)threads * 2 * C, sizeof(double));
#pragma omp parallel num_threads(threads)
    {
        double *mine = partial + (size_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c += 32) {
                const Line a = floats(scale + c), b = floats(shift + c);
                Line sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}, product = sum;
                for (int p = 0; p < positions; p++) {
                    const size_t at = ((size_t)n * positions + p) * C + c;
                    const Line value = widen(raw(pooled + at));
                    __m512i line = raw(dy + at);
                    if (act == RELU) /* y is never negative: as an integer it is more than 0 where z is */
                        line = _mm512_maskz_mov_epi16(_mm512_cmpgt_epi16_mask(raw(y + at), _mm512_setzero_si512()), line);
                    if (act == SILU) {
                        const Line z = multiply_add(value, a, b), g = widen(line);
                        line = narrow((Line){silu_backward(g.low, z.low), silu_backward(g.high, z.high)});
                    }
                    if (act != NONE) _mm512_storeu_si512(dz + at, line);
                    sum = plus(sum, widen(line));
                    product = multiply_add(widen(line), value, product);
                }
                add_to_doubles(mine + c, sum);
                add_to_doubles(mine + C + c, product);
            }
    }
    add_up(sums, partial, 2 * C, threads);
    free(partial);
}

/* dx [N, H, W, C] from dz [N, H/pool, W/pool, C]: before the pooling it is scale * dz + slope * pooled + base
 * at the largest of each window, and 0 elsewhere. */
void backward(const bf16 *dz, const bf16 *pooled, const uint8_t *which, bf16 *dx, const float *scale,
              const float *slope, const float *base, int N, int H, int W, int C, int pool, int threads) {
    const int h = H / pool, w = W / pool;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        for (int row = 0; row < h; row++) {
            bf16 *to = dx + ((size_t)n * H + pool * row) * W * C;
            size_t at = ((size_t)n * h + row) * w * C;
            for (int column = 0; column < w; column++, to += (pool - 1) * C)
                for (int c = 0; c < C; c += 32, at += 32, to += 32) {
                    const Line rest =
                        multiply_add(floats(slope + c), widen(raw(pooled + at)), floats(base + c));
                    const __m512i g = narrow(multiply_add(floats(scale + c), widen(raw(dz + at)), rest));
                    if (pool == 1) {
                        _mm512_storeu_si512(to, g);
                        continue;
                    }
                    const __m256i index = _mm256_loadu_si256((const __m256i *)(which + at));
                    for (int i = 0; i < 4; i++) {
                        const __mmask32 here = _mm256_cmpeq_epi8_mask(index, _mm256_set1_epi8(i));
                        bf16 *corner = to + (size_t)(i % 2) * C + (size_t)(i / 2) * W * C;
                        _mm512_storeu_si512(corner, _mm512_maskz_mov_epi16(here, g));
                    }
                }
        }
        /* What no window covers: an odd last row and column. */
        for (int row = 0; row < H && pool * w < W; row++)
            memset(dx + (((size_t)n * H + row) * W + W - 1) * C, 0, (size_t)C * sizeof(bf16));
        if (pool * h < H) memset(dx + ((size_t)n * H + H - 1) * W * C, 0, (size_t)W * C * sizeof(bf16));
    }
}

/* ---- Augmentation ------------------------------------------------------------------------------------------ */

static inline int folded(int at, int length) { /* beyond the ends back in, the ends not repeated */
    at = at < 0 ? -at : at;
    at = at < length ? at : 2 * (length - 1) - at;
    return at < 0 ? 0 : at > length - 1 ? length - 1 : at;
}

/* uint8 [N, H, W, 3] -> the same: mirrored where flip [N] says so, then moved by shift [N, 2], pixels down and
 * right; what comes in from outside is the reflection, or 0. */
void mirror_and_translate(const uint8_t *images, uint8_t *moved, const uint8_t *flip, const int64_t *shift, int N,
                          int H, int W, int reflect, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        int from[W]; /* byte in the row that each pixel comes from; -1 is outside */
        for (int x = 0; x < W; x++) {
            const int at = x - (int)shift[2 * n + 1], inside = at >= 0 && at < W, column = folded(at, W);
            from[x] = inside || reflect ? 3 * (flip[n] ? W - 1 - column : column) : -1;
        }
        for (int y = 0; y < H; y++) {
            const int at = y - (int)shift[2 * n], inside = at >= 0 && at < H;
            const uint8_t *row = images + ((size_t)n * H + folded(at, H)) * W * 3;
            uint8_t *to = moved + ((size_t)n * H + y) * W * 3;
            for (int x = 0; x < W; x++, to += 3) {
                const int there = from[x] >= 0 && (inside || reflect);
                for (int c = 0; c < 3; c++) to[c] = there ? row[from[x] + c] : 0;
            }
        }
    }
}
