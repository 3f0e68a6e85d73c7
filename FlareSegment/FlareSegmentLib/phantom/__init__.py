"""The built-in phantom: a CT made from formulas."""
