# The project with all that trains, tunes and serves; deploy/kuberay runs it. docker build -t REGISTRY/cifar-ray:1 .
#   docker run -p 127.0.0.1:8000:8000 -v $PWD/storage:/home/ray/storage REGISTRY/cifar-ray:1         serves what is in ./storage
#   docker run -v $PWD/photos:/photos -v $PWD/storage:/home/ray/storage --no-healthcheck REGISTRY/cifar-ray:1 cifar-ray train --data-dir /photos
# 6.5 GB on x86-64, 4 GB of it CUDA libraries; for a GPU the host needs NVIDIA's driver and container toolkit (docker run --gpus all).
# For Arm: docker buildx build --platform linux/arm64; all locked packages have builds for it. Neither image was built by the project's tests.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY requirements.production.lock requirements.lock LICENSE README.md pyproject.toml ./
COPY cifar_ray cifar_ray
COPY deployments deployments
RUN pip install --no-cache-dir $(grep -oE "^(uv|hatchling|editables)==[0-9.]+" requirements.lock) \
    && uv venv /opt/cifar_ray \
    && uv pip install --no-cache --compile-bytecode --python /opt/cifar_ray/bin/python --require-hashes -r requirements.production.lock \
    && uv build --no-build-isolation --wheel --out-dir /wheel . \
    && uv pip install --no-cache --compile-bytecode --no-deps --python /opt/cifar_ray/bin/python /wheel/*.whl

FROM python:3.12-slim-bookworm
# wget is how KubeRay and the health check ask; the loader of OpenVINO and scikit-learn needs nothing more
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray
COPY --from=build /opt/cifar_ray /opt/cifar_ray
ENV PATH=/opt/cifar_ray/bin:$PATH RAY_USAGE_STATS_ENABLED=0 CIFAR_RAY_STORAGE=/home/ray/storage
USER ray
WORKDIR /home/ray
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s CMD wget -q -O /dev/null http://127.0.0.1:8000/ready
CMD ["cifar-ray", "serve", "--host", "0.0.0.0"]
