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
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip install --no-cache-dir --no-deps --no-index --prefix /ddpm /wheels/*.whl

# The packages are one layer and ddpm is the next: a change of the code installs and transfers the small one alone.
# Files come by COPY, not by a bind mount: podman and buildah do not see that a mounted file has changed.
FROM ${PYTHON} AS packages
COPY docker/serve.lock /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes --prefix /packages -r /tmp/serve.lock
# What serving never imports: the packages' own tests, and onnxruntime's tools for making models.
RUN cd /packages/lib/python3.11/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && rm -r onnxruntime/transformers onnxruntime/quantization onnxruntime/tools

FROM ${PYTHON}
COPY --from=packages /packages /usr/local
COPY --from=wheel /ddpm /usr/local

# onnxruntime reports its use to its maker unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
RUN useradd --uid 10001 --create-home ddpm
USER ddpm

EXPOSE 8000
# Ready: the model has been loaded and has drawn. The process ends by itself when that fails. The interval is short
# because the first check comes after one interval; not every builder knows --start-interval.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/ready', timeout=4)"]

ENTRYPOINT ["ddpm"]
# Beyond the container's own loopback; which machines reach it, `docker run -p` decides.
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]

ARG REVISION=unknown
LABEL org.opencontainers.image.title="ddpm-serve" \
      org.opencontainers.image.description="Serves an exported diffusion model over HTTP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
