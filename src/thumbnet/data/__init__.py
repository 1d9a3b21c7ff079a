"""From labelled pictures to batches: splits → dataset → batches."""
