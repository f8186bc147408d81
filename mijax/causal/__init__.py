"""Causal abstraction: whether a model computes what a small program computes."""
