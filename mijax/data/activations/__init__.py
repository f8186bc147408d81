"""Activations in memory and on disk, as batches of rows."""
