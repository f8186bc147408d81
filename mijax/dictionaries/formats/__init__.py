"""File formats of dictionaries."""
