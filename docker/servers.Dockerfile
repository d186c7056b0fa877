# The MLflow and the Prefect server: one image, the command decides. Their versions are those of requirements.lock.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON}
COPY docker/servers.lock /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/servers.lock
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
