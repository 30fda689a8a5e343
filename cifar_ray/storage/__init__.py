"""Storage: files under one root, on a local path or in an object store."""

from cifar_ray.storage.tree import NUMBER, FileTree, split_location

__all__ = ["NUMBER", "FileTree", "split_location"]
