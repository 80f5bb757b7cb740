"""The table of the plugin's settings, and where their values come from."""

from __future__ import annotations

import pytest

from neops_remote_lab.core import client_settings
from neops_remote_lab.testing.options import SETTINGS
from neops_remote_lab.testing.settings import LabHostSettings
from neops_remote_lab.testing.sources import READERS, Sources


def test_credentials_of_different_sources_do_not_mix() -> None:
    sources = Sources(
        {"remote_lab_client_cert": "flag.pem"},
        {"REMOTE_LAB_CLIENT_CERT": "env.pem", "REMOTE_LAB_CLIENT_KEY": "env.key", "REMOTE_LAB_TOKEN": "env"},
        {"remote_lab_token": "ini", "remote_lab_ca_file": "ini.pem", "remote_lab_url": "http://lab"},
    )
    chosen = LabHostSettings.read(sources).credentials
    assert (chosen.client_cert, chosen.client_key) == ("flag.pem", None)
    assert (chosen.token, chosen.ca_file) == ("env", "ini.pem")


def test_every_default_can_be_read() -> None:
    for kind, default, _ in SETTINGS.values():
        assert default is None or READERS[kind](default) is not None


@pytest.mark.parametrize("name", ["request_timeout", "session_timeout", "acquisition_timeout", "unreachable_timeout"])
def test_the_timeouts_shown_in_the_help_are_those_of_the_client(name: str) -> None:
    assert SETTINGS[name][1] == f"{getattr(client_settings, name.upper()):g}"
