"""Methods side by side on a sample: scores in a table of their own, statistics, advice and a page.

archive ──sample──> images ──scorer──> scores ──results──> arrays ──summary──> tree ──page, charts──> page
"""
