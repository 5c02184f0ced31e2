"""How good is an explanation: faithfulness, localisation, robustness, sanity, sparsity, statistics.

    images ──> score_batch ──> rows (image, method, metric, value, status) ──> bootstrap, tests of difference
               (one shared forward, every altered image scored once)

The statistics need numpy and scipy only; everything before them needs torch.
"""
