"""What training does to patches, so that the network sees more than was scanned."""
