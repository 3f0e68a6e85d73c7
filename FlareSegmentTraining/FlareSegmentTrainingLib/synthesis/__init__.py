"""Training cases that nobody scanned."""
