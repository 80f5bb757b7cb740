"""What netlab prints, while it prints it."""

from tests.fakes import topology_text
from tests.server import LabServer


def test_a_log_is_followed_from_its_begin_to_the_end_of_the_lab(lab_server: LabServer) -> None:
    session = lab_server.join()
    headers = {"Accept": "text/event-stream"}
    with lab_server.client(session) as client, lab_server.client(session) as other:
        files = {"topology": ("lab.yml", topology_text(2, start_seconds=0.5))}
        assert client.post("/lab", files=files, headers={"Prefer": "respond-async"}).status_code == 202
        seen: list[str] = []
        with client.stream("GET", "/lab/log", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                seen.append(line)
                if line == "data: OK: Lab devices configured":
                    assert other.delete("/lab").status_code == 202
        assert seen[0] == "data: Creating configuration files"
        assert "event: end" in seen
        assert seen.index("data: OK: Lab devices configured") < seen.index("event: end")


def test_the_log_so_far_is_plain_text_without_folders_of_the_host(lab_server: LabServer) -> None:
    session = lab_server.join()
    assert lab_server.acquire(session, topology_text(1)).status_code == 200
    with lab_server.client(session) as client:
        answer = client.get("/lab/log")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "Starting clab nodes" in answer.text
    assert str(lab_server.root) not in answer.text
