"""Trained networks that classify pictures: runs, weights and exported models."""
