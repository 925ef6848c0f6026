"""Data sets as loaders, and how they are found, read and cached."""
