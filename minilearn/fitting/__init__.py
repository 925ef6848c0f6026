"""What surrounds a fit, and is put back after it."""
