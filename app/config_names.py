"""Environment variables with our prefix that are not settings of the service."""

import re
from typing import cast

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from pydantic_settings.sources import EnvSettingsSource

PREFIX = "RERANKER_"
# Variables that scripts and clients read, and the service does not.
SCRIPT_VARIABLES = {
    "RERANKER_INSTALL": "`scripts/setup`: `full`, or `slim` to leave out torch and model export.",
    "RERANKER_URL": "`reranker rerank` and `reranker info`: URL of the service.",
    "RERANKER_API_KEY": "`reranker` commands, `manage_reranker.sh` and `performance_test.sh`: API key to send.",
    "RERANKER_PROXY_PORT": "nginx or HAProxy in front of the replicas: port to listen on (default `8080`).",
    "RERANKER_PROXY_ROUTING": "HAProxy in front of the replicas: `query` sends equal queries to the same replica "
    "(default), `connections` sends each request to the least busy one.",
    "RERANKER_PROXY_TIMEOUT": "nginx or HAProxy in front of the replicas: seconds that a response may take (default "
    "`300`).",
}
# Set by `reranker bulk --ray`: Ray reports its use to its makers, and starts again when it is used after a shutdown.
RAY_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
# Kubernetes adds these variables to every container of a namespace, for each Service. Those of a Service named
# `reranker`, or `reranker-…`, have our prefix. `…_PORT` may then have the name of a setting, and an address as value.
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)
SERVICE_VARIABLE = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$", re.IGNORECASE
)


def is_service_variable(name: str, value: str | None) -> bool:
    """Whether Kubernetes has set this variable for a Service."""
    name = name.upper()
    return bool(SERVICE_VARIABLE.search(name) or (name.endswith("_PORT") and SERVICE_ADDRESS.match(value or "")))


class EnvironmentSettings(BaseSettings):
    """Settings that ignore the variables of Kubernetes."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature of pydantic)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments, then the environment without the variables of Kubernetes."""
        environment = cast(EnvSettingsSource, env_settings)
        variables = environment.env_vars.items()
        environment.env_vars = {name: value for name, value in variables if not is_service_variable(name, value)}
        return init_settings, environment
