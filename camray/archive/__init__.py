"""Bytes in: which files an archive holds, which members a file holds, what a member's pixels are.

    path ──listing──> shards, loose files ──selection──> those asked for
    shard ──members──> Member ... (tar, zipped, parquet, files)
    content ──decode──> uint8 RGB of the model's input, and where it lies in the source

Nothing here needs torch or Ray, and nothing is ever written: a member's name is a label, not a path.
"""
