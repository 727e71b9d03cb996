"""`python -m tests.deploy.ray_cluster`: two nodes of Ray on the loopback, until standard input ends.

Run by the interpreter of Ray's environment. Prints a line of JSON when they run, and one for each command, a line of
standard input.
"""

import json
import os
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster

# For three replicas both nodes are needed.
CPUS = 2


class Nodes:
    """A head and a second node."""

    def __init__(self) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
        self._second = self._cluster.add_node(num_cpus=CPUS)
        ray.init(address=self._cluster.address, namespace="serve", log_to_driver=False)

    def address(self) -> Any:
        return self._cluster.address

    def running(self) -> Any:
        """The names of the replicas that get requests."""
        from ray.serve.context import _get_global_client

        details = _get_global_client().get_serve_details()
        replicas = details["applications"]["reranker"]["deployments"]["Reranker"]["replicas"]
        return sorted(replica["actor_name"] for replica in replicas if replica["state"] == "RUNNING")

    def kill(self) -> Any:
        """Kill the process of one replica."""
        name = self.running()[0]
        ray.kill(ray.get_actor(name))
        return name

    def remove(self) -> Any:
        """Kill the processes of the second node."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        return True

    def stop(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    # Ray prints messages about lost nodes, which go to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    nodes = Nodes()
    print(json.dumps("started"), file=answers, flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(getattr(nodes, line.strip())()), file=answers, flush=True)
    finally:
        nodes.stop()


if __name__ == "__main__":
    main()
