"""Discovery methods."""
