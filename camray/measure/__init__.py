"""How good is an explanation: faithfulness, localisation, sanity, sparsity, cost, statistics.

    images ──> score_batch ──> values and states by metric (images, maps) ──> statistics
               (one shared forward, every altered image scored once)

A metric is a function of tensors that `registry.metric` registers; `catalogue.METRICS` is all of them.
Registry and statistics need no torch.
"""
