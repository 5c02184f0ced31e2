"""The batch core, a library on arrays: decoded images in, records out.

pixels ──explainer──> predictions, heatmaps ──signals, confirm──> records ──overlays──> pictures
"""
