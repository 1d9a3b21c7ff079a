"""Finds the settings that suit a data set."""
