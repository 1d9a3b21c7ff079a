"""Compare runs, draw figures, inspect data sets, and write a run's report page."""
