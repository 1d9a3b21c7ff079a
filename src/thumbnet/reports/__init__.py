"""Runs and data sets, shown: comparison, figures, inspection, one page."""
