"""Text that was changed at random, and what must not come of it."""
