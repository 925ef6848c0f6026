"""What is on disk: the whole state of a run, taken, written, read and put back."""
