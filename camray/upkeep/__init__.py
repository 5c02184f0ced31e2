"""Tools over any OUT: what it holds (status), whether it is whole (verify), what may go (prune)."""
