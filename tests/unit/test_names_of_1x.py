"""Names that code written for 1.x imports."""

import pickle
import subprocess
import sys

import pytest

import neops_remote_lab
from neops_remote_lab import DeviceInfoDto, SessionInfoDto, SessionState, client, models

NAMES = (
    "AcquireResponseDto",
    "ActiveSessionResponseDto",
    "CreateSessionResponseDto",
    "DeviceInfoDto",
    "LabStatusDto",
    "SessionInfoDto",
    "SessionState",
    "SessionStatusResponseDto",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_same_in_the_package_and_in_its_models(name: str) -> None:
    assert getattr(neops_remote_lab, name) is getattr(models, name)
    assert name in neops_remote_lab.__all__
    assert name in dir(neops_remote_lab)
    assert name in models.__all__


def test_the_version_and_every_name_can_be_imported_at_once() -> None:
    assert set(neops_remote_lab.__all__) == {*NAMES, "__version__"}
    assert neops_remote_lab.__version__
    with pytest.raises(AttributeError, match="has no attribute 'SessionList'"):
        _ = neops_remote_lab.SessionList


def test_importing_the_package_does_not_import_its_models() -> None:
    script = "import sys, neops_remote_lab; print('pydantic' in sys.modules, 'importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def test_a_state_is_an_enum_and_a_string() -> None:
    answer = models.SessionStatusResponseDto.model_validate({"status": "active", "position": 0})
    assert answer.status is SessionState.ACTIVE
    assert str(answer.status) == "active"
    assert answer.model_dump(mode="json")["status"] == "active"


def test_the_fields_of_1x_are_there() -> None:
    device = DeviceInfoDto(name="r1", raw={})
    assert (device.name, device.raw) == ("r1", {})
    session = SessionInfoDto(
        id="a", status=SessionState.WAITING, position=1, created_at=1.0, last_seen_at=2.0, topology_name=None
    )
    assert session.model_dump() == {
        "id": "a",
        "status": "waiting",
        "position": 1,
        "created_at": 1.0,
        "last_seen_at": 2.0,
        "topology_name": None,
    }


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (client.SessionEnded("why"), RuntimeError),
        (client.SessionClosed(), RuntimeError),
        (client.InvalidSetting(), ValueError),
    ],
)
def test_exceptions_of_the_client_are_caught_by_except_clauses_for_1x(
    error: Exception, builtin: type[Exception]
) -> None:
    assert isinstance(error, builtin)
    assert type(error).__bases__ == (builtin,), "no hierarchy"
    assert type(error).__name__ in client.__all__
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - as pytest-xdist and multiprocessing do
    assert (type(copied), str(copied), vars(copied)) == (type(error), str(error), vars(error))
