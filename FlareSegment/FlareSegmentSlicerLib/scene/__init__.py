"""Results in the MRML scene: nodes, display, comparison, export, regions and sequences."""
