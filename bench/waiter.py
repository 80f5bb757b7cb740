"""A program that waits in the queue with a `RemoteLabClient`, on commands from standard input.

The command `go` creates a client, and prints `@active SECONDS` (monotonic clock) when its constructor returns. `close`
closes it and prints `@closed`. The program runs with the Python of either version, so it imports nothing of the bench.
"""

import sys
import time

from neops_remote_lab.client import RemoteLabClient


def main(url: str) -> None:
    """Run the commands on standard input until it ends."""
    client = None
    for line in sys.stdin:
        if line.strip() == "go":
            client = RemoteLabClient(url)
            _print(f"@active {time.monotonic()!r}")
        elif client is not None:
            client.close()
            _print("@closed")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
