"""Other libraries' interfaces, on gemmir's kernels."""
