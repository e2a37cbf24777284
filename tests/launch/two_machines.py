"""A Ray cluster of two machines that are one, at two of its loopback addresses, until standard input ends.

Says the cluster's address, in a line of its own.
"""

import sys

from ray.cluster_utils import Cluster

HERE, OTHER = "127.0.0.2", "127.0.0.3"


def main() -> None:
    sizes = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(
        head_node_args=sizes | {"node_ip_address": HERE, "include_dashboard": False}, initialize_head=True
    )
    try:
        cluster.add_node(**sizes, node_ip_address=OTHER)
        sys.stdout.write(f"\n{cluster.address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
