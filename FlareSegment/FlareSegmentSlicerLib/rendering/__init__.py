"""Pictures, videos and surfaces of a result."""
