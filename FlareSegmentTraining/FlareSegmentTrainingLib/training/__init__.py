"""A training run: configuration, preparation, batches, loss, trainer, run folder."""
