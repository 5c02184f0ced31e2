"""What only the cluster can tell is refused before the first write, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from camray.errors import UsageError


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"run__device": "cuda"}, "--device: cuda, but the cluster has no GPU. Fix: --device cpu"),
        ({"run__device": "cpu", "run__actors": 500}, "--actors: 500 on 2 CPUs. Fix: at most 20"),
    ],
)
def test_what_the_cluster_does_not_have(
    local_ray: None,
    demo: Path,
    explain: Callable[..., object],
    tmp_path: Path,
    settings: dict[str, object],
    said: str,
) -> None:
    import ray

    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError) as caught:
        explain(
            demo / "archive",
            tmp_path / "out",
            demo / "models" / "hans64-clean",
            run__engine="ray",
            **settings,
        )
    assert str(caught.value) == said
    assert not (tmp_path / "out").exists()
