"""The folder of a training, and the weights that it leaves."""
