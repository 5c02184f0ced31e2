"""`camray serve OUT`: the pages of the report over all records, with decisions saved as they are made.

records, audit ──rows──> a table in memory that answers any filter ──app──> pages, pictures, exports
                                    a person ──decisions──> OUT/qa-inbox, where the next audit finds them
"""
