"""Data sets that come as loaders, and how they are found, read and kept."""
