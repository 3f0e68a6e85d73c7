"""Teaching a model with corrected cases: examples, the training on them, and whether the result is any better."""
