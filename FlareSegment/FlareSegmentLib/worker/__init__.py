"""The worker process that keeps the model warm, and the protocol that it speaks."""
