"""What one or several models in one process need in memory: `scripts/bench memory`."""

import json
import re
import time
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from app.machine.hardware import cpu_name
from benchmarks.load import print_table, progress_bar
from benchmarks.process import service
from benchmarks.texts import requests

IDLE_SECONDS = 2
DOCUMENTS = 20
WORDS = (40, 400)


def measure(models: dict[str, str], documents: int) -> dict[str, float]:
    """Resident memory of a service with these models, in bytes: after requests to each, and when all are unloaded."""
    names = ",".join(f"{name}={model}" for name, model in models.items())
    bodies = list(requests(-(-documents // DOCUMENTS), DOCUMENTS, WORDS, seed=0))
    settings = {"RERANKER_MODELS": names, "RERANKER_MODEL_IDLE_SECONDS": str(IDLE_SECONDS)}
    with service(**settings) as (url, _), httpx.Client(base_url=url, timeout=600) as client:
        for body in bodies:
            for name in models:
                client.post("/rerank", json=body | {"model": name}).raise_for_status()
        used = resident(client)
        while any(each["loaded"] for each in client.get("/health").json()["models"]):
            time.sleep(0.1)
        return {"used": used, "unloaded": resident(client)}


def resident(client: httpx.Client) -> float:
    """Resident memory of the service in bytes."""
    found = re.search(r"^process_resident_memory_bytes (\S+)$", client.get("/metrics").text, re.MULTILINE)
    if found is None:
        raise typer.BadParameter("this system does not report the memory of a process")
    return float(found[1])


def main(
    models: Annotated[str, typer.Option(help="Comma-separated models")] = "embedded,embedded:multilingual",
    documents: Annotated[int, typer.Option(min=1, help="Documents that each model ranks, about")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table")] = False,
) -> None:
    """Measure the memory of a service with each model alone, and with all of them."""
    names = {f"model-{number}": model for number, model in enumerate(models.split(","))}
    groups = [{name: model} for name, model in names.items()]
    groups += [names] if len(names) > 1 else []
    with progress_bar("services") as progress:
        rows: list[dict[str, Any]] = [
            {"models": list(group.values()), **measure(group, documents)}
            for group in progress.track(groups, description="services")
        ]
    if as_json:
        print(json.dumps({"cpu": cpu_name(), "documents": documents, "services": rows}, indent=2))
        return
    table = Table(f"models, {documents} documents each", "MB", "MB, unloaded")
    for row in rows:
        table.add_row(" + ".join(row["models"]), f"{row['used'] / 1e6:.0f}", f"{row['unloaded'] / 1e6:.0f}")
    print(cpu_name())
    print_table(table)
