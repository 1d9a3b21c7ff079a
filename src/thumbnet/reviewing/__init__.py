"""Review labels: which are probably wrong, and which pictures without a label are worth labelling."""
