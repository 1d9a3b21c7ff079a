"""One picture, and the data set that every source becomes. No torch here."""
