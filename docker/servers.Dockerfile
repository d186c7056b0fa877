# The MLflow and the Prefect server: one image, the command decides. Their versions are those of requirements.lock.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS plugin
WORKDIR /source
COPY docker/build.lock .
RUN pip install --no-cache-dir --no-deps --require-hashes -r build.lock
COPY docker/mlflow_plugin .
RUN pip install --no-cache-dir --no-deps --no-index --no-build-isolation --prefix /plugin .

FROM ${PYTHON}
COPY docker/servers.lock /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/servers.lock
COPY --from=plugin /plugin /usr/local
COPY docker/make_bucket.py flows/prefect_server.py /opt/

# A volume that is mounted on a folder takes its owner over.
RUN useradd --uid 10001 --create-home servers && install --directory --owner=servers /home/servers/.prefect
USER servers
WORKDIR /home/servers

ARG REVISION=unknown
LABEL org.opencontainers.image.title="ddpm-servers" \
      org.opencontainers.image.description="The MLflow and Prefect servers of the ddpm stack" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
