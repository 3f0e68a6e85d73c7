"""What the module can do, and the client of the worker process that does it."""
