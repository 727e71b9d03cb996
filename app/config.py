"""Settings of one process. `app/environment.py` reads them. Everything below `app.main` takes plain values.

A new setting is a field here with its description; run `scripts/docs` to add it to the documentation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from app.config_keys import keys_in, keys_of
from app.config_quality import QualitySettings
from app.config_types import (
    DEVICE_DEFAULTS,
    Capacity,
    Cascade,
    Device,
    DocumentPlace,
    Host,
    LogLevel,
    Models,
    Network,
    Networks,
    OverloadStatus,
    RedisUrl,
    RootPath,
    WebOrigins,
    expanded,
    named_sources,
    networks,
    split,
    with_revision,
)
from app.machine.hardware import cpu_limit


class Settings(QualitySettings):
    """Validated, frozen settings of one process. Where a field is None, the device or the model decides.

    docs/configuration.md is generated: strings below fields are descriptions, comments between fields are headings.
    """

    # Server and logging
    host: Host = Field("127.0.0.1", alias="RERANKER_HOST")
    """Address to listen on. `0.0.0.0` listens on all interfaces by IPv4, `::` by IPv6 and IPv4."""
    port: int = Field(8000, alias="RERANKER_PORT", ge=1, le=65535)
    """Port to listen on."""
    root_path: RootPath = Field("", alias="RERANKER_ROOT_PATH")
    """Path prefix that clients see, such as `/reranker`, if a proxy routes by path. The proxy may remove the prefix or
    keep it. If empty, there is no prefix."""
    trusted_proxies: Networks | None = Field(None, alias="RERANKER_TRUSTED_PROXIES")
    """Comma-separated addresses or networks of proxies. If one sends `X-Forwarded-Prefix`, that replaces
    `RERANKER_ROOT_PATH`. `*` trusts all. If unset, the header is ignored."""
    log_level: LogLevel = Field("info", alias="RERANKER_LOG_LEVEL")
    """Lowest level to log: `debug`, `info`, `warning` or `error`."""
    log_format: Literal["console", "json"] = Field("console", alias="RERANKER_LOG_FORMAT")
    """`console` for people, `json` for programs. Both write one line per event to stderr."""
    log_texts: bool = Field(False, alias="RERANKER_LOG_TEXTS")
    """Log the first 200 characters of each query. If `false`, the log contains no text of any request."""
    docs: bool = Field(True, alias="RERANKER_DOCS")
    """Serve `/docs`, `/redoc` and `/openapi.json`."""
    ui: bool = Field(True, alias="RERANKER_UI")
    """Serve the [playground and dashboard](playground.md) at `/`. `off` redirects `/` to `/docs`."""

    # Access
    api_keys: SecretStr | None = Field(None, alias="RERANKER_API_KEYS")
    """Comma-separated API keys. If this and `RERANKER_API_KEYS_FILE` are unset, authentication is off."""
    api_keys_file: Path | None = Field(None, alias="RERANKER_API_KEYS_FILE")
    """File with more API keys, one per line, such as a Docker or Kubernetes secret. Lines starting with `#` are
    comments."""
    key_max_parallel: int | None = Field(None, alias="RERANKER_KEY_MAX_PARALLEL", ge=1)
    """Requests that one API key may have in progress, including those that wait. Without API keys, all clients share
    this limit. If unset, there is no limit per key."""
    key_per_minute: int | None = Field(None, alias="RERANKER_KEY_REQUESTS_PER_MINUTE", ge=1)
    """Average requests per minute of one API key. If unset, there is no limit."""
    key_burst: int = Field(10, alias="RERANKER_KEY_BURST", ge=1)
    """Requests that one API key may send at once before `RERANKER_KEY_REQUESTS_PER_MINUTE` slows it down."""
    protect_metrics: bool = Field(False, alias="RERANKER_PROTECT_METRICS")
    """Require an API key for `/metrics`. `/health` and `/docs` never require one."""
    cors_origins: WebOrigins | None = Field(None, alias="RERANKER_CORS_ORIGINS")
    """Comma-separated web origins allowed to call the service from a browser; `*` allows all. If unset, none is
    allowed."""

    # Model and engine
    model: str | None = Field(None, alias="RERANKER_MODEL")
    """Model folder, or Hugging Face Hub id such as `BAAI/bge-reranker-v2-m3`. If unset, the embedded model for English
    is used; `embedded:multilingual` is the other embedded one."""
    revision: str | None = Field(None, alias="RERANKER_REVISION")
    """Commit, tag or branch of a Hub model. If unset, the newest in the local cache, or else on the Hub, is used."""
    models: Models | None = Field(None, alias="RERANKER_MODELS")
    """Several models in one process: `NAME=SOURCE,NAME=SOURCE`, where a source is what `RERANKER_MODEL` may be, or
    `ID@REVISION`. Requests choose by `model`; the first is the default. See [models](models.md#several-models)."""
    idle_seconds: float = Field(0.0, alias="RERANKER_MODEL_IDLE_SECONDS", ge=0, allow_inf_nan=False)
    """Seconds without a request after which a model is removed from memory. The next request for it loads it again,
    and waits for that. `0` means never."""
    cascade: Cascade | None = Field(None, alias="RERANKER_CASCADE")
    """`SMALL,LARGE`: two names of `RERANKER_MODELS`. A request without `model` is read by the small model, and its best
    documents again by the large one. See [models](models.md#cascade)."""
    cascade_top_k: int | None = Field(None, alias="RERANKER_CASCADE_TOP_K", ge=1)
    """Documents that the large model of `RERANKER_CASCADE` reads, at most. Requests can override it. If unset, 10; with
    a latency budget, as many as fit."""
    template: str | None = Field(None, alias="RERANKER_TEMPLATE")
    """The text that the model was trained to read, with `{query}`, `{document}` and, if it takes one, `{instruction}`
    (`\\n` is a new line). Or `qwen3-reranker`, `mxbai-rerank-v2` or `none`. If unset, it comes from the model. See
    [models](models.md)."""
    instruction: str | None = Field(None, alias="RERANKER_INSTRUCTION")
    """What the model should look for, if it takes an instruction. Requests can override it. If unset, the model's own
    applies."""
    trust_remote_code: bool = Field(False, alias="RERANKER_TRUST_REMOTE_CODE")
    """Run the Python code that comes with a model."""
    allow_pickle: bool = Field(False, alias="RERANKER_ALLOW_PICKLE")
    """Load `pytorch_model.bin` if a model has no `model.safetensors`."""
    max_length: int | None = Field(None, alias="RERANKER_MAX_LENGTH", ge=16, le=131072)
    """Maximum tokens of a query and document together. If unset or too high, the model's own limit (its window)
    applies. If you set a lower value, the service logs a warning."""
    long_documents: Literal["auto", "truncate", "chunk_max", "refuse"] = Field("auto", alias="RERANKER_LONG_DOCUMENTS")
    """How to read documents longer than the window: `truncate`, `chunk_max` (score overlapping windows and keep the
    best) or `refuse`. `auto` uses the mode that the model declares, otherwise `truncate`. Requests can override it."""
    activation: Literal["auto", "model", "sigmoid", "none"] = Field("auto", alias="RERANKER_ACTIVATION")
    """What turns logits into scores: `sigmoid`, `model` (the model's own activation) or `none`. `auto` uses a sigmoid,
    so that scores are from 0 to 1, and the model's own activation for `/score` and Weaviate. Requests with
    `raw_scores` get logits in any case."""
    backend: Literal["auto", "torch", "openvino", "onnx"] = Field("auto", alias="RERANKER_BACKEND")
    """`openvino`, `onnx` or `torch`. `auto` uses OpenVINO on a CPU and torch on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field("auto", alias="RERANKER_PRECISION")
    """`fp32`, `bf16` (not with `onnx`), `fp16` (only with `torch`) or `int8` (not with `torch`). `auto` measures on a
    CPU (see [engines](engines.md)); on CUDA it uses fp16, or bf16 if the model overflows in fp16."""
    export_dir: Path = Field(Path("~/.cache/reranker"), alias="RERANKER_EXPORT_DIR")
    """Folder for exported models, compiled code and measurements."""
    device: Device = Field("auto", alias="RERANKER_DEVICE")
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. If a named device is missing, the service does not start."""
    threads: int = Field(default_factory=cpu_limit, alias="RERANKER_THREADS", ge=1, le=1024)
    """Threads per inference. The default respects the CPU limit of a container."""
    torch_compile: bool = Field(False, alias="ENABLE_TORCH_COMPILE")
    """Compile the model at startup with torch, which takes a minute or two. If that fails, a warning is logged and the
    model runs uncompiled. On a CPU, `RERANKER_BACKEND=auto` then selects torch, which is slower than OpenVINO."""
    tokenizer_workers: int = Field(2, alias="TOKENIZER_WORKERS", ge=1, le=256)
    """Threads for tokenization."""
    batch_tokens: int | None = Field(None, alias="RERANKER_BATCH_TOKENS", ge=16)
    """Tokens per batch, including padding. If unset, the best value is measured."""
    streams: int | None = Field(None, alias="RERANKER_STREAMS", ge=1, le=1024)
    """OpenVINO: parallel inferences, which share the threads. If unset, the best value is measured."""
    part_tokens: int | None = Field(None, alias="RERANKER_PART_TOKENS", ge=16)
    """OpenVINO: tokens per inference, including padding. If unset, the best value is measured."""

    # Load and deadlines
    max_parallel: int | None = Field(None, alias="RERANKER_MAX_PARALLEL", ge=1)
    """Requests processed at once. Their pairs are batched together."""
    max_queue: int | None = Field(None, alias="RERANKER_MAX_QUEUE", ge=0)
    """Requests that may wait. When the queue is full, further requests are rejected."""
    queue_timeout: float = Field(30.0, alias="RERANKER_QUEUE_TIMEOUT", gt=0, allow_inf_nan=False)
    """Seconds that a request may wait in the queue."""
    priorities: bool = Field(False, alias="RERANKER_PRIORITIES")
    """Let requests set their `priority`."""
    overload_status: OverloadStatus = Field(429, alias="RERANKER_OVERLOAD_STATUS")
    """Status code when the queue is full: `429`, or `503` for clients that retry only on 503."""
    on_overload: Literal["error", "lexical"] = Field("error", alias="RERANKER_ON_OVERLOAD")
    """Response when the model cannot score a request in time: `error`, or `lexical` to rank by shared words."""
    inference_timeout: float = Field(120.0, alias="RERANKER_INFERENCE_TIMEOUT", gt=0, allow_inf_nan=False)
    """Seconds that one batch may take. After that, the engine counts as hung and is reloaded."""
    max_reloads: int = Field(3, alias="RERANKER_MAX_RELOADS", ge=0)
    """Consecutive reloads without a score. After that, the process exits with status 1."""
    request_timeout: float = Field(0.0, alias="RERANKER_REQUEST_TIMEOUT", ge=0, allow_inf_nan=False)
    """Seconds that a request without `timeout_ms` may take. `0` means no limit."""
    budget_ms: int | None = Field(None, alias="RERANKER_BUDGET_MS", ge=1, le=86_400_000)
    """Milliseconds that a request should take: the model reads as many documents as fit, the best of the first stage
    first ([API](api.md#latency-budget)). Requests can override it with `budget_ms`. If unset, all are read."""
    shutdown_delay: float = Field(0.0, alias="RERANKER_SHUTDOWN_DELAY", ge=0, le=600, allow_inf_nan=False)
    """Seconds to accept and serve requests after SIGTERM, while `/health/ready` is 503. Set it if a load balancer needs
    time to notice, as in Kubernetes: see [deploy](deploy.md#in-kubernetes)."""
    shutdown_timeout: float = Field(30.0, alias="RERANKER_SHUTDOWN_TIMEOUT", ge=0, allow_inf_nan=False)
    """Seconds that accepted requests have to finish after SIGTERM, and after `RERANKER_SHUTDOWN_DELAY`."""

    # First stage
    prefilter: Literal["off", "lexical", "embedding", "hybrid"] = Field("off", alias="RERANKER_PREFILTER")
    """First stage that selects which documents of a large request the model scores: `lexical`, `embedding`, `hybrid`
    or `off`. Requests can override it."""
    prefilter_top_k: int = Field(100, alias="RERANKER_PREFILTER_TOP_K", ge=1)
    """Documents that the first stage passes on to the model. Requests with this many documents or fewer skip the first
    stage."""
    prefilter_model: str | None = Field(None, alias="RERANKER_PREFILTER_MODEL")
    """sentence-transformers model for the first stage: a folder or a Hub id. Needs torch. If unset, the included static
    embeddings are used."""

    # Fusion
    fusion: Literal["auto", "off", "lexical", "score", "order"] = Field("auto", alias="RERANKER_FUSION")
    """What the order of the results considers besides the model's score: BM25 of the documents (`lexical`), the `score`
    that the caller sent with each document, or their `order` in the request. `auto` uses what the model declares,
    otherwise `off`. Requests can override it."""
    fusion_weight: float = Field(0.2, alias="RERANKER_FUSION_WEIGHT", ge=0, le=100, allow_inf_nan=False)
    """Weight of the evidence in `RERANKER_FUSION`; the weight of the model's score is 1."""
    fusion_method: Literal["zscore", "rrf"] = Field("zscore", alias="RERANKER_FUSION_METHOD")
    """How scores are combined: by weighted z-scores, or by weighted reciprocal ranks (`rrf`)."""

    # Limits
    max_documents: int = Field(1000, alias="RERANKER_MAX_DOCUMENTS", ge=1, le=10_000)
    """Maximum number of documents per request. It can be set to 10000 at most."""
    max_text_chars: int = Field(100_000, alias="RERANKER_MAX_TEXT_CHARS", ge=1, le=100_000_000)
    """Characters per query or document."""
    span_candidates: int = Field(50, alias="RERANKER_SPAN_CANDIDATES", ge=1, le=10_000)
    """Passages inside one document that the model scores for `max_spans` or `relevant_spans`."""
    max_span_candidates: int = Field(500, alias="RERANKER_MAX_SPAN_CANDIDATES", ge=0, le=10_000)
    """The same for all documents of a request; the best documents come first. `0` turns these passages off."""
    max_body_bytes: int = Field(8_388_608, alias="RERANKER_MAX_BODY_BYTES", ge=1024)
    """Bytes per request body."""
    max_buffered_bytes: int = Field(536_870_912, alias="RERANKER_MAX_BUFFERED_BYTES", ge=1024)
    """Estimated memory for all request bodies in progress, including parsed copies. Above it, requests get 503."""
    body_timeout: float = Field(60.0, alias="RERANKER_BODY_TIMEOUT", gt=0, allow_inf_nan=False)
    """Seconds that a request body may take to arrive."""
    max_connections: int = Field(1024, alias="RERANKER_MAX_CONNECTIONS", ge=1)
    """Open client connections. Above it, requests get 503, except for `/health`."""
    keep_alive: int = Field(75, alias="RERANKER_KEEP_ALIVE", ge=1, le=86_400)
    """Seconds that an idle connection stays open. Set it above the idle timeout of the load balancer in front: a
    request that arrives while the service closes the connection is lost."""

    # Score cache
    prediction_cache: bool = Field(True, alias="ENABLE_PREDICTION_CACHE")
    """Cache the scores of query-document pairs."""
    cache_ttl: float = Field(300.0, alias="CACHE_TTL_SECONDS", gt=0, allow_inf_nan=False)
    """Seconds that a score stays in the cache."""
    cache_max_entries: int = Field(100_000, alias="CACHE_MAX_ENTRIES", ge=1)
    """Scores in the cache, and windows of long documents. The least recently used are evicted first."""
    cache_url: RedisUrl = Field(None, alias="RERANKER_CACHE_URL")
    """`redis://…`: replicas share their scores. If it is unset or Redis does not respond, each replica uses its own
    cache."""
    clear_cache_interval: float = Field(3600.0, alias="CLEAR_CACHE_INTERVAL", gt=0, allow_inf_nan=False)
    """Seconds between clean-ups of expired scores and unused GPU memory."""

    # Stored documents
    documents: DocumentPlace = Field(None, alias="RERANKER_DOCUMENTS")
    """Where `/v1/documents` stores documents, to rank them by id: `memory`, the path of a file such as
    `/data/documents.sqlite`, or `redis://…` for replicas. If unset, documents are not stored. See
    [documents](documents.md)."""
    documents_max_bytes: int = Field(268_435_456, alias="RERANKER_DOCUMENTS_MAX_BYTES", ge=1024)
    """Bytes of all stored documents, at most. When they are reached, the least recently used are removed."""

    def capacity(self, device: str) -> Capacity:
        """The configured capacity; `device`, such as `cuda:0`, provides the default of what is unset."""
        asked = {name: getattr(self, name) for name in Capacity.__slots__ if getattr(self, name) is not None}
        return replace(DEVICE_DEFAULTS[device.split(":", maxsplit=1)[0]], **asked)

    def each(self) -> "dict[str, Settings]":
        """The settings of each model by its name. A single model has none: the name is then empty."""
        if self.models is None:
            return {"": self}
        sources = {name: with_revision(source) for name, source in named_sources(self.models).items()}
        return {
            name: self.model_copy(update={"model": source, "revision": revision, "models": None})
            for name, (source, revision) in sources.items()
        }

    def keys(self) -> list[str]:
        """All API keys, from the variable and from the file. Raises `StartupError` if one of them is set but empty."""
        keys = keys_of(self.api_keys, "RERANKER_API_KEYS") if self.api_keys else []
        return keys + (keys_in(self.api_keys_file, "RERANKER_API_KEYS_FILE") if self.api_keys_file else [])

    @property
    def store(self) -> Path:
        """The folder for exports. Raises `StartupError` if it depends on a home folder that the user does not have."""
        return expanded("RERANKER_EXPORT_DIR", self.export_dir)

    def origins(self) -> list[str]:
        return split(self.cors_origins or "")

    def proxies(self) -> list[Network]:
        return networks(self.trusted_proxies or "")

    def schedule(self, splits: bool) -> dict[str, int]:
        """The configured fields of an engine's schedule. `splits`: whether the engine splits batches into parts."""
        names = ("batch_tokens", "streams", "part_tokens") if splits else ("batch_tokens",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
