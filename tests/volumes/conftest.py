from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.volumes.cluster import Cluster, Node


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def make(*names: str, **more: object) -> Cluster:
        clusters.append(Cluster(tmp_path, *names, **more))  # type: ignore[arg-type]
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.close()


@pytest.fixture
def pair(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Two nodes that see each other's ops when they are told to."""
    return make_cluster("anna", "bert")


@pytest.fixture
def anna(make_cluster: Callable[..., Cluster]) -> Node:
    """A node alone."""
    return make_cluster("anna")["anna"]
