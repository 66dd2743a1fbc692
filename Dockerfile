# The connector with its plugins, as a user without rights. docs/containers.md explains how to run it.
ARG PYTHON=docker.io/library/python:3.13-slim

FROM ${PYTHON} AS build
# The folders of plugins/ to install.
ARG PLUGINS="exec mcp mock observe postgres sandbox"
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/molecule-connect && \
    for plugin in $PLUGINS; do set -- "$@" "./plugins/$plugin"; done && \
    /opt/molecule-connect/bin/pip install --no-cache-dir . "$@"

FROM ${PYTHON}
LABEL org.opencontainers.image.title="molecule-connect" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed id, so that the owner of a volume is known.
RUN groupadd --gid 10001 molecule && \
    useradd --uid 10001 --gid molecule --home-dir /var/lib/molecule-connect --create-home --shell /usr/sbin/nologin molecule && \
    chmod 0700 /var/lib/molecule-connect
COPY --from=build /opt/molecule-connect /opt/molecule-connect
ENV PATH=/opt/molecule-connect/bin:$PATH \
    MOLECULE_STATE_DIR=/var/lib/molecule-connect \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/molecule-connect
# The only folder that is written, besides /tmp.
VOLUME /var/lib/molecule-connect
STOPSIGNAL SIGTERM
# Fails while a workspace isn't served, or can't hear.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["molecule", "status"]
# As the first process, molecule reaps orphans and passes signals on, so no init is needed.
ENTRYPOINT ["molecule"]
CMD ["connect", "--log-format", "json"]
