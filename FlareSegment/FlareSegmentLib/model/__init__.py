"""Model folders: what a model is, and how Hounsfield units become its input."""
