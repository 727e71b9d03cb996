"""The environments of the client libraries. There are several because requirements conflict.

`python -m tests.clients.environments` installs them all; `scripts/test` runs it in the background.
"""

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.environments import environment

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Environment:
    """A script with its requirements and its clients."""

    script: str
    requirements: tuple[str, ...]
    clients: tuple[str, ...]

    def python(self) -> Path:
        """The interpreter of the environment, which is created on first use. Raises `CalledProcessError`."""
        folder = environment(f"clients/{self.script.removesuffix('_clients.py')}", self.requirements)
        return folder / "bin" / "python"


ENVIRONMENTS = [
    Environment(
        "cohere_clients.py",
        ("cohere==7.3.1", "litellm==1.106.2"),
        (
            "cohere v1",
            "cohere v2",
            "cohere v2 relevant_spans",
            "litellm hosted_vllm",
            "litellm infinity",
            "litellm cohere",
            "litellm jina_ai",
        ),
    ),
    Environment(
        "langchain_clients.py",
        ("langchain-cohere==0.6.0", "langchain-community==0.4.2", "infinity-client==0.0.78"),
        ("langchain CohereRerank", "langchain InfinityRerank", "langchain JinaRerank", "infinity_client"),
    ),
    Environment(
        "llama_index_clients.py",
        (
            "llama-index-postprocessor-cohere-rerank==0.10.0",
            "llama-index-postprocessor-jinaai-rerank==0.6.0",
            "llama-index-postprocessor-tei-rerank==0.6.0",
        ),
        ("llama-index CohereRerank", "llama-index JinaRerank", "llama-index TEI"),
    ),
    Environment(
        "haystack_clients.py",
        (
            "haystack-ai==3.3.0",
            "cohere-haystack==11.0.0",
            "jina-haystack==2.0.1",
            "nvidia-haystack==3.0.0",
            "huggingface-api-haystack==3.1.0",
        ),
        (
            "haystack CohereRanker",
            "haystack JinaRanker",
            "haystack NvidiaRanker",
            "haystack HuggingFaceTEIRanker",
        ),
    ),
    Environment(
        "hosted_clients.py",
        (
            "voyageai==0.5.0",
            "dashscope==2.0.2",
            "boto3==1.44.8",
            "pinecone==10.2.0",
            "google-cloud-discoveryengine==0.20.5",
            "mixedbread==0.54.0",
        ),
        (
            "voyageai",
            "dashscope TextReRank",
            "dashscope Client",
            "boto3 rerank",
            "boto3 invoke_model",
            "pinecone",
            "google-cloud-discoveryengine",
            "mixedbread",
        ),
    ),
]

if __name__ == "__main__":
    for clients in ENVIRONMENTS:
        with contextlib.suppress(subprocess.CalledProcessError):  # the tests report the reason
            clients.python()
