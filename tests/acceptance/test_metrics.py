"""What Prometheus scrapes."""

import httpx

from tests.fakes import topology_text, wait_until
from tests.server import LabServer


def scrape(server: LabServer) -> dict[str, float]:
    """Name with labels: value."""
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("neops_remote_lab_"): float(value) for name, _, value in lines}


def test_what_happens_is_counted_and_how_things_stand_is_told(lab_server: LabServer) -> None:
    holder, waiter = lab_server.join(), lab_server.join()
    assert lab_server.acquire(holder, topology_text(1)).status_code == 200
    assert lab_server.acquire(holder, topology_text(1)).status_code == 200
    now = scrape(lab_server)
    assert now["sessions_joined_total"] == 2
    assert now['sessions{state="waiting"}'] == 1
    assert now['sessions{state="active"}'] == 1
    assert now['lab_state{state="running"}'] == 1
    assert now["lab_references"] == 2
    assert now['lab_start_seconds_count{outcome="up"}'] == 1

    with lab_server.client() as client:
        client.delete(f"/session/{holder}")
    wait_until(lab_server.is_clean, 10, "the lab is not torn down")
    wait_until(lambda: scrape(lab_server)['lab_state{state="none"}'] == 1, 10, "the end of the lab is not told")
    now = scrape(lab_server)
    assert now['sessions_ended_total{reason="ended by its client"}'] == 1
    assert now["hold_seconds_count"] == 1
    assert now["lab_teardown_seconds_count"] == 1
    assert now["queue_wait_seconds_count"] == 1

    broken = lab_server.acquire(waiter, "provider: clab\nnodes: [a]\n")
    assert broken.status_code == 422
    now = scrape(lab_server)
    assert now['lab_start_seconds_count{outcome="rejected"}'] == 1
    assert now["quarantined"] == 0
