"""Protocols of other servers over the same pipeline: Open Inference Protocol v2 (HTTP and gRPC), and TorchServe's inference API."""
