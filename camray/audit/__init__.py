"""The table in, what people read out: verdicts, drift, a gate, pages and exports.

records ──judge──> verdicts ──night──> summary, gate ──report──> pages
"""
