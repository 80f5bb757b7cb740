"""A real server refuses every upload of the corpora, keeps nothing of it, and continues to serve."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.corpora import UNPRINTABLE, UPLOADS, Upload
from tests.server import LabServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def holder(server: LabServer) -> str:
    return server.join()


@pytest.mark.parametrize("path", ["/lab", "/topology/check"])
@pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: upload.name)
def test_a_hostile_upload_is_refused_with_a_message(server: LabServer, holder: str, upload: Upload, path: str) -> None:
    headers = {b"X-Session-ID": holder.encode(), b"Content-Type": upload.content_type()}
    answer = httpx.post(server.url + path, headers=headers, content=upload.body(), timeout=60)
    assert answer.status_code == upload.status, answer.text
    assert upload.sentence in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 1000
    assert answer.json()["detail"].isprintable() or "\n" in answer.json()["detail"]
    assert server.lab_directories() == []
    assert server.fake.invocations() == []
    assert server.status(holder)["position"] == 0


@pytest.mark.parametrize("character", UNPRINTABLE.values(), ids=UNPRINTABLE.keys())
@pytest.mark.parametrize("field", ["topology", "extra_files"])
def test_a_file_name_that_is_not_printable_is_refused(
    server: LabServer, holder: str, character: str, field: str
) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=\"%s\"; filename*=utf-8''%s\r\n\r\nnodes: [a]\r\n--x--\r\n" % (
        field.encode(),
        "".join(f"%{byte:02X}" for byte in f"a{character}b.yml".encode()).encode(),
    )
    headers = {"X-Session-ID": holder, "Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.url}/lab", headers=headers, content=body)
    assert answer.status_code == 400, answer.text
    assert re.search(rf"U\+{ord(character):04X}", answer.json()["detail"])
    assert answer.json()["detail"].isprintable()
