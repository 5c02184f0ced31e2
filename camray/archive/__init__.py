"""Bytes in: which files an archive holds, which members a file holds, what is known of each.

    path ──listing──> shards, loose files ──members.select──> those asked for
    shard ──members, readers──> Member ... (tar, zipped, parquet, files)

Nothing is ever written: a member's name is a label, not a path.
"""
