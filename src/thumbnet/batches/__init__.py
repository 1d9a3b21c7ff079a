"""Turn splits into the batches that a network sees."""
