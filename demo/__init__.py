"""Synthetic archive with a planted shortcut, and two small classifiers trained on it."""
