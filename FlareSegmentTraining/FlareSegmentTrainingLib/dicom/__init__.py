"""DICOM exports, structure sets and series, for training."""
