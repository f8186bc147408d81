"""Activation functions and losses of dictionaries."""
