/* Scratch memory for the kernels.
 *
 * Every kernel allocates all its memory before its first parallel region, because a thread that failed to
 * allocate inside one would leave the others waiting at the next barrier. If an allocation fails, the kernel
 * returns NO_MEMORY before it has written any result, and calls.py raises MemoryError. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdlib.h>

enum { DONE, NO_MEMORY }; /* what every kernel returns */

/* Memory aligned to a cache line, not cleared; NULL if there is not enough. */
static inline void *allocate(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

#endif
