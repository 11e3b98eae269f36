"""Which clusters there are and how to reach them: clusters.toml."""

from __future__ import annotations

from .file import config_path, load_cluster, load_clusters, remove_cluster, save_cluster
from .model import ClusterConfig

__all__ = ["ClusterConfig", "config_path", "load_cluster", "load_clusters", "remove_cluster", "save_cluster"]
