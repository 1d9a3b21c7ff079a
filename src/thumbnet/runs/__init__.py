"""Run folders and the weights in them."""
