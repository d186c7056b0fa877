# The whole pipeline on a machine with a GPU (or without one: then it runs on the CPU).
#
#   docker build -f docker/train.Dockerfile -t ddpm-train .
#   docker run --rm --init --gpus all -v "$PWD:/project" --user "$(id -u):$(id -g)" ddpm-train
#
# The image is the environment. The project, a git checkout, is mounted at /project: what a run makes of it (dvc.lock,
# models/, reports/, deploy/) belongs there.
ARG PYTHON=python:3.11-slim-bookworm
# torch brings the CUDA libraries it runs on, of this very version, and requirements.lock pins them. The base adds what a
# wheel cannot: the layer that lets an older driver run them, and the settings by which a container is given the GPU.
ARG CUDA=nvidia/cuda:13.0.3-base-ubuntu24.04

FROM ${PYTHON} AS uv
COPY requirements-uv.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements-uv.lock

FROM ${CUDA}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /project
COPY --from=uv /usr/local/bin/uv /usr/local/bin/

# The lock is for Python 3.11, which this Ubuntu has not. uv knows the hash of every interpreter it fetches.
ENV UV_PYTHON_INSTALL_DIR=/opt/python \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH
RUN uv venv --managed-python --python 3.11 $VIRTUAL_ENV
COPY requirements.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --require-hashes -r /tmp/requirements.lock

# Editable, so that the mounted checkout is the code that runs.
WORKDIR /project
COPY pyproject.toml README.md LICENSE ./
COPY ddpm ddpm
RUN uv pip install --no-cache --no-deps --no-build-isolation --editable .

# Anyone may be the user, so that what a run writes belongs to the checkout's owner: a home and a name for all.
# DVC's locks: by default in /var/tmp, which a read-only container lacks. And nothing reports home.
ENV HOME=/home/ddpm \
    USER=ddpm \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=true \
    MLFLOW_DISABLE_TELEMETRY=true \
    ORT_DISABLE_TELEMETRY=1
RUN useradd --uid 10001 --create-home --home-dir $HOME ddpm && chmod 1777 $HOME
USER ddpm
CMD ["python", "-m", "flows.retrain"]

ARG REVISION=unknown
LABEL org.opencontainers.image.title="ddpm-train" \
      org.opencontainers.image.description="The environment of the whole ddpm pipeline, for CUDA or the CPU" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
