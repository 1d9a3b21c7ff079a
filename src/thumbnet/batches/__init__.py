"""From splits to the batches that a network sees."""
