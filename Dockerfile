# The CPU images.
#   docker build -t reranker .                                     all engines, and model export
#   docker build -t reranker:slim --target slim .                  the embedded model, no torch
#   docker build -t reranker:slim --target slim --build-arg MODEL=BAAI/bge-reranker-base .
#                                                                  another model, exported at build time
ARG MODEL=""

FROM python:3.11-slim-bookworm AS build-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet --upgrade pip
# Dependencies change less often than the source, so their layer comes first.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir app reranker_client && touch reranker_client/__init__.py && echo '__version__ = "0"' >app/__init__.py && \
  /opt/venv/bin/pip install --quiet ".[otel]"
COPY docker/strip.sh docker/
RUN docker/strip.sh /opt/venv

FROM build-slim AS build-full
COPY scripts/install_cpu_torch scripts/
RUN scripts/install_cpu_torch /opt/venv && /opt/venv/bin/pip install --quiet ".[torch,onnx,export]" && docker/strip.sh /opt/venv

# uPlot draws the curves of the dashboard. Where the build cannot reach npm's registry, there are figures only.
FROM python:3.11-slim-bookworm AS curves
WORKDIR /src
COPY web/package.json web/package-lock.json web/.npmrc web/
COPY scripts/ui scripts/
RUN mkdir -p app/ui/vendor && { scripts/ui vendor || echo "uPlot cannot be installed: the dashboard has no curves"; }

FROM build-full AS source-full
COPY app app
COPY --from=curves /src/app/ui/vendor app/ui/vendor
COPY reranker_client reranker_client
RUN /opt/venv/bin/pip install --quiet --no-deps --force-reinstall . && \
  /opt/venv/bin/pip uninstall --quiet --yes pip

FROM build-slim AS source-slim
COPY app app
COPY --from=curves /src/app/ui/vendor app/ui/vendor
COPY reranker_client reranker_client
RUN /opt/venv/bin/pip install --quiet --no-deps --force-reinstall . && \
  /opt/venv/bin/pip uninstall --quiet --yes pip && docker/strip.sh /opt/venv slim

# The model of the slim image: MODEL if set, otherwise only the embedded one.
FROM python:3.11-slim-bookworm AS model
RUN mkdir /model
FROM source-full AS model-exported
ARG MODEL
RUN if [ -n "$MODEL" ]; then /opt/venv/bin/python -m app.export "$MODEL" --output /model; else mkdir /model; fi
# hadolint ignore=DL3006
FROM model${MODEL:+-exported} AS chosen

FROM python:3.11-slim-bookworm AS base
LABEL org.opencontainers.image.title="Reranker" \
      org.opencontainers.image.description="Ranks documents by relevance to a query" \
      org.opencontainers.image.licenses="Apache-2.0"
# The user must own the mount point of the volume for Hub models and exports. Group 0 may write to it too: platforms like
# OpenShift run a container with any user id and this group.
RUN useradd --uid 10001 --create-home reranker && install -d -o reranker -g 0 -m 775 /home/reranker/.cache && \
  chgrp 0 /home/reranker && chmod 775 /home/reranker
COPY docker/entrypoint.sh /usr/local/bin/entrypoint.sh
ENV HOME=/home/reranker USER=reranker PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RERANKER_HOST=:: RERANKER_PORT=8000
USER 10001
EXPOSE 8000
# While the model loads, the check waits.
HEALTHCHECK --interval=10s --timeout=6h --start-period=120s --retries=3 \
  CMD ["entrypoint.sh", "healthcheck"]
ENTRYPOINT ["entrypoint.sh"]
CMD ["serve"]

FROM base AS slim
COPY --from=source-slim /opt/venv /opt/venv
COPY --from=chosen /model /opt/model

FROM base AS runtime
COPY --from=source-full /opt/venv /opt/venv
