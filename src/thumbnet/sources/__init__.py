"""Read what the user names into :class:`~thumbnet.data.splits.Data`: one module per form of data."""
