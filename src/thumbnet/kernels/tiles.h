/* What the convolutions with AMX share: tile_conv.c and tile_gradient.c. AMX are the matrix tiles of Intel's
 * Sapphire Rapids and later.
 *
 * A tile instruction multiplies A [16 x 32] by B [32 x 16], whose rows are interleaved in pairs, and adds the
 * product to C [16 x 16]. Two tiles of A and two of B give four products, so work comes in blocks of 32.
 *
 * Both kernels work on 32 pictures at a time and give the same pixel of all of them to one tile. So a tap
 * that falls outside the picture is never multiplied: on a map of 3x3, 49 products remain of 81. The pictures
 * are packed into tiles once per block, which stays in the L2 cache. */
#ifndef TILES_H
#define TILES_H

#include "vectors.h"

#include <string.h>

enum { BLOCK = 32, TILE = 512 }; /* pictures or channels at a time; values per tile */
enum { ROOM = 1200 << 10 };      /* bytes per thread for what is packed, half of the L2 cache */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Configures all eight tiles with 16 rows of 64 bytes, and keeps the configuration that oneDNN uses. */
INLINE void begin_tiles(TileConfig *before) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_storeconfig(before);
    /* gcc's functions tell the optimizer only of the first 8 bytes that they write or read. */
    __asm__ volatile("" : : "r"(before), "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* Keeps the optimizer from moving earlier stores behind the loading of tiles: gcc's _tile_loadd does not tell
 * it that it reads memory. */
INLINE void finish_stores(void) { __asm__ volatile("" : : : "memory"); }

INLINE void end_tiles(const TileConfig *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* Maps [N, height, width, C]. With `which`, they are gradients of 2x2 maxima: `values` and `which` are
 * [N, height / 2, width / 2, C], and each value belongs to the pixel of its window that `which` gives, 0 to 3
 * in reading order. The other three pixels are 0. */
typedef struct {
    const bf16 *values;
    const uint8_t *which;
    int height, width, channels;
} Maps;

/* The rows and columns that are not always 0. */
static inline int rows_of(Maps maps) { return maps.which ? maps.height / 2 * 2 : maps.height; }
static inline int columns_of(Maps maps) { return maps.which ? maps.width / 2 * 2 : maps.width; }

typedef struct {
    size_t at; /* of the first channel, in `values` and in `which` */
    int corner;
} Pixel;

static inline Pixel pixel_at(Maps maps, long picture, int row, int column) {
    const int halve = maps.which != NULL;
    const size_t line = (size_t)picture * (maps.height >> halve) + (row >> halve);
    return (Pixel){(line * (maps.width >> halve) + (column >> halve)) * maps.channels,
                   row % 2 * 2 + column % 2};
}

/* Loads 32 channels of a pixel, from `first` on. */
INLINE __m512i load_wide(Maps maps, Pixel pixel, int first) {
    __mmask32 mask = wide_mask(first, maps.channels);
    if (maps.which)
        mask = _mm256_mask_cmpeq_epi8_mask(mask, _mm256_maskz_loadu_epi8(mask, maps.which + pixel.at + first),
                                           _mm256_set1_epi8(pixel.corner));
    return _mm512_maskz_loadu_epi16(mask, maps.values + pixel.at + first);
}

/* Loads 16 channels of a pixel, from `first` on. */
INLINE __m256i load_half(Maps maps, Pixel pixel, int first) {
    __mmask16 mask = channel_mask(first, maps.channels);
    if (maps.which)
        mask = _mm_mask_cmpeq_epi8_mask(mask, _mm_maskz_loadu_epi8(mask, maps.which + pixel.at + first),
                                        _mm_set1_epi8(pixel.corner));
    return _mm256_maskz_loadu_epi16(mask, maps.values + pixel.at + first);
}

/* Interleaves 16 values each: a[c] and b[c] are neighbours in 32 bits. */
static inline __m512i interleave(__m256i a, __m256i b) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
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

static inline void store_tile(bf16 *to, const __m512i *rows) {
    for (int j = 0; j < 16; j++) _mm512_store_si512(to + 32 * j, rows[j]);
}

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

#endif
