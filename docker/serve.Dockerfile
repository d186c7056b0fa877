# Serves an exported model over HTTP. Holds the extra `serve` and this package, and nothing else.
#
#   docker build -f docker/serve.Dockerfile -t ddpm-serve .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/deploy/ddpm:/model:ro" ddpm-serve
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
RUN useradd --uid 10001 --create-home ddpm
USER ddpm

EXPOSE 8000
# Ready: the model has been loaded and has drawn. The process ends by itself when that fails.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=5)"]

ENTRYPOINT ["ddpm"]
# Beyond the container's own loopback; which machines reach it, `docker run -p` decides.
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
