"""From what the user names to batches: sources → splits → dataset → batches."""
