"""How many ways a class is looked at: heatmaps of one class in clusters, for a person to judge.

SpRAy, Lapuschkin et al. 2019, "Unmasking Clever Hans predictors": maps as shares of heat, a graph of the ten
nearest neighbours, its normalised Laplacian, k-means on the first eigenvectors; the number of clusters is
where the eigenvalues leave their largest gap. Measured here, that gap is no evidence of a shortcut: it was
largest in a class of a model that never saw one. So clusters are shown, and never judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from scipy.cluster.vq import kmeans2
from scipy.linalg import eigh
from scipy.sparse.csgraph import laplacian
from scipy.spatial.distance import cdist

from camray.audit.columns import Floats, heat_shares, number
from camray.ledger import log
from camray.ledger.table import Table

LARGEST = 250  # maps a class: the distances grow with the square
NEWEST, MOST_FILES = 6_000, 16  # images, of which maps are grouped; files that they are read from
FEWEST = 24  # maps, below which clusters mean nothing
NEIGHBOURS = 10
MOST_CLUSTERS = 6


@dataclass(frozen=True, slots=True)
class Cluster:
    """Maps that look alike: how many, and their mean as shares of heat."""

    size: int
    mean_map: Floats  # (cells,)


def clusters_of(maps: Floats) -> list[Cluster]:
    """Group maps (n, cells), the largest group first; one group where there are too few."""
    if len(maps) < FEWEST:
        return [Cluster(len(maps), maps.mean(0))] if len(maps) else []
    values, vectors = spectrum(maps)
    count = int(np.argmax(np.diff(values[: MOST_CLUSTERS + 1]))) + 1
    if count == 1:
        return [Cluster(len(maps), maps.mean(0))]
    _, group = kmeans2(vectors[:, :count], count, seed=0, minit="++")
    found = [Cluster(int((group == g).sum()), maps[group == g].mean(0)) for g in np.unique(group)]
    return sorted(found, key=lambda cluster: -cluster.size)


def spectrum(maps: Floats) -> tuple[Floats, Floats]:
    """Give the smallest eigenvalues of the normalised Laplacian, ascending, and their eigenvectors."""
    distance = cdist(maps, maps)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    graph = np.zeros_like(distance)
    np.put_along_axis(graph, nearest, 1.0, axis=1)
    last = min(MOST_CLUSTERS, len(maps) - 1)
    values, vectors = eigh(laplacian((graph + graph.T) / 2, normed=True), subset_by_index=(0, last))
    return np.asarray(values), np.asarray(vectors)


def clusters_of_classes(
    table: Table, explainer: str, classes: Sequence[int]
) -> tuple[dict[int, list[Cluster]], tuple[int, int]]:
    """Group the first 250 maps of each class among the newest images; give also the grid of the maps."""
    names = ["predicted_class", "heatmap", "heat_h", "heat_w"]
    rows = table.dataset(explainer, newest_files(table, explainer, NEWEST))
    kept: dict[int, list[Floats]] = {c: [] for c in classes}
    grid = (0, 0)
    asked = ds.field("predicted_class").isin(list(classes))
    for batch in rows.scanner(columns=names, filter=asked, batch_size=16384).head(NEWEST).to_batches():
        shares, grid = heat_shares(batch, grid)
        predicted = number(batch, "predicted_class")
        for c in {int(v) for v in pc.unique(batch.column("predicted_class")).to_pylist()}:
            room = LARGEST - sum(map(len, kept[c]))
            kept[c].append(shares[(predicted == c) & ~np.isnan(shares[:, 0])][: max(room, 0)])
    return {c: clusters_of(np.concatenate(parts)) for c, parts in kept.items() if parts}, grid


def newest_files(table: Table, explainer: str, rows: int) -> list[str]:
    """Give the paths of the record files committed last: as many as hold so many rows, at most 16."""
    assert table.delta is not None
    files = log.newest(table.delta, explainer)
    before = pc.cumulative_sum(files["num_records"]).to_numpy() - files["num_records"].to_numpy()
    return list(files["path"].filter(pa.array(before < rows)).to_pylist()[:MOST_FILES])
