"""From what the user names to :class:`~thumbnet.data.splits.Data`: one module per form."""
