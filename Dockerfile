# The project as deploy/kuberay runs it: docker build -t REGISTRY/cifar-ray:1 . && docker push REGISTRY/cifar-ray:1
# Python and what requirements.lock says, CUDA included: NVIDIA's driver and container toolkit on the host are all a GPU needs besides.
FROM python:3.12-slim-bookworm

# wget is what KubeRay asks a node's health with
RUN apt-get update && apt-get install -y --no-install-recommends make wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray/cifar_ray
COPY --chown=ray:ray LICENSE Makefile README.md pyproject.toml requirements.lock ./
COPY --chown=ray:ray cifar_ray cifar_ray
COPY --chown=ray:ray deployments deployments
RUN UV_NO_CACHE=1 make setup
ENV PATH=/home/ray/cifar_ray/.venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0
