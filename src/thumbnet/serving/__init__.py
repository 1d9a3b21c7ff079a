"""A trained network behind HTTP, with a page for people (the extra ``serve``)."""
