"""One run from settings to exit code: first everything that can be refused, then work and commits."""
