/* Lets tests refuse the kernels' allocations. Tests compile the kernels with `gcc -include` and this file. */
#include <stdlib.h>

/* The number of allocations to grant before refusing all; one variable for the whole library. */
__attribute__((weak)) int allocations_granted = 1 << 30;

static inline void *refusing_alloc(size_t alignment, size_t bytes) {
    return allocations_granted-- > 0 ? aligned_alloc(alignment, bytes) : NULL;
}

#define aligned_alloc refusing_alloc
