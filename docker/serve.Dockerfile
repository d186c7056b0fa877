# Draws images from an exported model. Holds numpy, onnxruntime, Pillow and this package, and nothing else.
#
#   docker build -f docker/serve.Dockerfile -t ddpm-serve .
#   docker run --rm -v "$PWD/deploy/ddpm:/model:ro" -v "$PWD/samples:/samples" --user "$(id -u):$(id -g)" ddpm-serve
#
# Give PYTHON with a digest, or from your own mirror, to pin the base as well.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS wheel
WORKDIR /source
COPY docker/build.lock docker/
RUN pip install --no-cache-dir --no-deps --require-hashes -r docker/build.lock
COPY pyproject.toml README.md LICENSE ./
COPY ddpm ddpm
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON}
RUN --mount=type=bind,source=docker/serve.lock,target=/tmp/serve.lock \
    --mount=type=bind,from=wheel,source=/wheels,target=/tmp/wheels \
    pip install --no-cache-dir --no-deps --require-hashes -r /tmp/serve.lock \
    && pip install --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl

# onnxruntime reports its use to its maker unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
RUN useradd --uid 10001 --create-home ddpm && install --directory --owner=ddpm /samples
USER ddpm

# What a client would ask for, in small: the model loads, the network runs, an image comes out.
HEALTHCHECK --interval=60s --timeout=30s --start-period=10s \
    CMD ["ddpm", "sample", "/model", "--n", "1", "--steps", "1", "--out", "/tmp/health.npz"]

# Python leaves at once on SIGINT; as process 1 it would not hear the usual SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["ddpm"]
CMD ["sample", "/model", "--n", "64", "--out", "/samples/samples.png"]
