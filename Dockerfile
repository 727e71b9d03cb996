# The CPU image: docker build -t reranker .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet --upgrade pip
# What is needed changes less often than the source: its layer comes first.
COPY pyproject.toml README.md LICENSE ./
COPY scripts/install_cpu_torch scripts/
RUN scripts/install_cpu_torch /opt/venv
RUN mkdir app reranker_client && touch app/__init__.py reranker_client/__init__.py && /opt/venv/bin/pip install --quiet ".[torch,onnx,export]"
COPY app app
COPY reranker_client reranker_client
RUN /opt/venv/bin/pip install --quiet --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Reranker" \
      org.opencontainers.image.description="Puts passages in the order of their relevance to a query" \
      org.opencontainers.image.licenses="Apache-2.0"
# The folder that a volume of hub models and exports is mounted on has to be its owner's.
RUN useradd --uid 10001 --create-home reranker && install -d -o reranker -g reranker /home/reranker/.cache
COPY --from=build /opt/venv /opt/venv
COPY docker/entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RERANKER_HOST=0.0.0.0 RERANKER_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["entrypoint.sh", "healthcheck"]
ENTRYPOINT ["entrypoint.sh"]
CMD ["serve"]
