"""Every setting of a training, and the recipes that come with thumbnet."""
