"""Pixels of one image: encoded bytes in, the model's view of them out.

    content ──sniff, decode, fit──> uint8 RGB of the model's input, and where it lies in the source

`guarded` does this in a process of its own, for bytes are what a stranger wrote.
"""
