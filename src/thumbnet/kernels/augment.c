/* Augmentation of uint8 pictures. */
#include "memory.h"

#include <omp.h>
#include <stdint.h>

/* Reflects a position beyond an end back inside, without repeating the end itself. */
static inline int reflected(int at, int length) {
    at = at < 0 ? -at : at;
    at = at < length ? at : 2 * (length - 1) - at;
    return at < 0 ? 0 : at > length - 1 ? length - 1 : at;
}

/* Finds the byte of the source row that each of W pixels of a picture's rows comes from; -1 if outside. */
static inline void find_columns(int W, int shift, int flip, int reflect, int *from) {
    for (int x = 0; x < W; x++) {
        const int at = x - shift, inside = at >= 0 && at < W, column = reflected(at, W);
        from[x] = inside || reflect ? 3 * (flip ? W - 1 - column : column) : -1;
    }
}

/* Copies a row of W pixels. Pixel x comes from byte from[x]; it is 0 if that or the whole row is outside. */
static inline void move_row(int W, const uint8_t *row, const int *restrict from, int exists,
                            uint8_t *restrict to) {
    for (int x = 0; x < W; x++, to += 3) {
        const int there = from[x] >= 0 && exists;
        for (int c = 0; c < 3; c++) to[c] = there ? row[from[x] + c] : 0;
    }
}

/* uint8 images [N, H, W, 3] -> moved, of the same shape: mirrored left to right if flip [N] is set, then
 * shifted by shift [N, 2], in pixels down and right. The border is a reflection, or 0. Returns DONE or
 * NO_MEMORY. */
int mirror_and_translate(const uint8_t *images, uint8_t *moved, const uint8_t *flip, const int64_t *shift,
                         int N, int H, int W, int reflect, int threads) {
    int *columns = allocate(sizeof(int) * W * threads); /* too large for a stack if a picture is wide */
    if (!columns) return NO_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int n = 0; n < N; n++) {
        int *from = columns + (size_t)W * omp_get_thread_num();
        find_columns(W, (int)shift[2 * n + 1], flip[n], reflect, from);
        for (int y = 0; y < H; y++) {
            const int at = y - (int)shift[2 * n], inside = at >= 0 && at < H;
            const uint8_t *row = images + ((size_t)n * H + reflected(at, H)) * W * 3;
            move_row(W, row, from, inside || reflect, moved + ((size_t)n * H + y) * W * 3);
        }
    }
    free(columns);
    return DONE;
}
