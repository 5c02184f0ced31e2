"""The table in, what people read out: verdicts, drift, a gate, pages and exports.

records ──judge──> verdicts ──night──> summary, gate ──report──> pages
"""

EXPORTS = {  # a format of the queue for other tools -> the function that writes it
    "csv": "camray.audit.export:csv_table",
    "imagefolder": "camray.audit.export:imagefolder",  # of Hugging Face
    "label-studio": "camray.audit.export:label_studio",
    "coco": "camray.audit.export:coco",
    "fiftyone": "camray.audit.export:fiftyone",
    "duckdb": "camray.audit.export:duckdb_views",
}
LOCAL_FILES = "/data/local-files/?d="  # of Label Studio, before a path in its folder of local files
