"""Trained networks that classify pictures."""
