"""The graph that a run drives: tasks in, receipts of written chunks out.

ShardTask ──read──> chunk ──decode──> pixels ──actor──> records ──sink──> Receipt
"""
