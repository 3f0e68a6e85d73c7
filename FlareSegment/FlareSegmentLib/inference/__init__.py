"""The way of the data: from a CT through the networks to organ labels on the CT's own grid."""
