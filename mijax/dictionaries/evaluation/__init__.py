"""Metrics of trained dictionaries."""
