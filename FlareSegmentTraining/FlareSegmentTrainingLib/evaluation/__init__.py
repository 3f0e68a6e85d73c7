"""Measuring a model on labeled cases, and the report about it."""
