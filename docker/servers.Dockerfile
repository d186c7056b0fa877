# The MLflow and the Prefect server: one image, the command decides. Their versions are those of requirements.lock.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON}
RUN --mount=type=bind,source=docker/servers.lock,target=/tmp/servers.lock \
    pip install --no-cache-dir --no-deps --require-hashes -r /tmp/servers.lock
COPY docker/make_bucket.py /opt/

# A volume that is mounted on a folder takes its owner over.
RUN useradd --uid 10001 --create-home servers && install --directory --owner=servers /home/servers/.prefect
USER servers
WORKDIR /home/servers
