"""The Ray Serve replicas: models in memory, the classifier, and the ingress."""
