"""The table of the plugin's settings, and where their values come from."""

from __future__ import annotations

from neops_remote_lab.client.connection import UNREACHABLE_TIMEOUT
from neops_remote_lab.testing.options import SETTINGS, Sources
from neops_remote_lab.testing.settings import LabHostSettings


def test_credentials_of_different_sources_do_not_mix() -> None:
    sources = Sources(
        {"remote_lab_client_cert": "flag.pem"},
        {"REMOTE_LAB_CLIENT_CERT": "env.pem", "REMOTE_LAB_CLIENT_KEY": "env.key", "REMOTE_LAB_TOKEN": "env"},
        {"remote_lab_token": "ini", "remote_lab_ca_file": "ini.pem", "remote_lab_url": "http://lab"},
    )
    chosen = LabHostSettings.read(sources).credentials
    assert (chosen.client_cert, chosen.client_key) == ("flag.pem", None)
    assert (chosen.token, chosen.ca_file) == ("env", "ini.pem")


def test_the_table_has_the_defaults_of_the_client() -> None:
    defaults = {setting.name: setting.default for setting in SETTINGS}
    assert float(defaults["unreachable_timeout"] or 0) == UNREACHABLE_TIMEOUT
