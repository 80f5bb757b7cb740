"""A client that waits in the queue: one `RemoteLabClient` for each line on standard input.

Run by the bench with the Python that has the client to be measured, so it imports nothing of the bench. `go` makes a
client, whose return is reported as `@active SECONDS` (monotonic, the same clock for all processes); `close` ends it.
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
            _say(f"@active {time.monotonic()!r}")
        elif client is not None:
            client.close()
            _say("@closed")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
