"""Cases on many processes and computers, by Dask: which workers there are, and what each of them does."""
