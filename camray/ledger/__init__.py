"""Durable state: what is left to do, record files, the Delta table and its commits, the hold on OUT.

shards ──plan──> tasks        chunk ──sink──> record file ──receipt──> desk ──commit──> table
"""
