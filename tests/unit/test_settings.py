"""Settings: flags, environment, defaults, and messages about invalid values."""

from __future__ import annotations

import argparse
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from neops_remote_lab.cli.main import main
from neops_remote_lab.cli.settings import ServerSettings, Settings
from neops_remote_lab.core.settings import (
    SettingsGroup,
    add_flags,
    default_text,
    flag,
    groups_of,
    read_settings,
    settings_of,
    variable,
)
from neops_remote_lab.netlab import up_arguments
from neops_remote_lab.netlab.settings import NetlabSettings

NAMES = settings_of(Settings)


def flat(settings: SettingsGroup) -> dict[str, Any]:
    """Value by setting, without the groups."""
    values: dict[str, Any] = {}
    for name, value in settings:
        values |= flat(value) if isinstance(value, SettingsGroup) else {name: value}
    return values


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="neops-remote-lab")
    add_flags(made, Settings)
    return made


def test_defaults_are_used_for_missing_values() -> None:
    settings = read_settings(Settings, {}, {})
    server, service, uploads = settings.server, settings.service, settings.service.uploads
    assert (server.port, server.log_level, server.debug) == (8000, "INFO", False)
    assert (service.labs.on_exit, service.queue.max_hold, service.http.max_wait) == ("teardown", 0, 60)
    assert (uploads.max_topology_bytes, uploads.max_extra_bytes, uploads.max_extra_files) == (1 << 20, 64 << 20, 200)


def test_a_flag_overrides_a_variable_and_a_variable_the_default() -> None:
    environment = {"NEOPS_REMOTE_LAB_PORT": "9000", "NEOPS_REMOTE_LAB_HOST": "::1"}
    settings = read_settings(ServerSettings, {"port": "9001"}, environment)
    assert (settings.port, settings.host) == (9001, "::1")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read_settings(ServerSettings, {}, {"NEOPS_REMOTE_LAB_PORT": ""}).port == 8000


def test_variables_of_other_programs_are_ignored() -> None:
    others = {"PORT": "1", "REMOTE_LAB_URL": "http://x", "NEOPS_REMOTE_LAB_LAB_ID": "of a lab", "NEOPS": "x"}
    assert read_settings(ServerSettings, {}, others).port == 8000


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("NEOPS_REMOTE_LAB_PROT", "NEOPS_REMOTE_LAB_PORT may be meant"),
        ("NEOPS_REMOTE_LAB_WORKDIR", "NEOPS_REMOTE_LAB_WORK_DIR may be meant"),
        ("NEOPS_REMOTE_LAB_port", "is not a setting"),
        ("NEOPS_REMOTE_LAB_QQQ", "is not a setting"),
    ],
)
@pytest.mark.parametrize("value", ["9000", ""])
def test_a_mistyped_variable_is_refused_with_a_suggestion(name: str, nearest: str, value: str) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        read_settings(Settings, {}, {name: value})
    assert nearest in str(refusal.value)


def test_a_group_reads_its_own_settings_and_accepts_variables_of_others() -> None:
    environment = {"NEOPS_REMOTE_LAB_PORT": "http", "NEOPS_REMOTE_LAB_WORK_DIR": "/labs"}
    assert read_settings(NetlabSettings, {"port": "1", "on_exit": "burn"}, environment).work_dir == Path("/labs")
    with pytest.raises(ValueError, match="NEOPS_REMOTE_LAB_PORT may be meant"):
        read_settings(NetlabSettings, {}, {"NEOPS_REMOTE_LAB_PROT": "9000"})


def test_no_two_groups_have_a_setting_of_the_same_name() -> None:
    assert sum(len(group.model_fields) for group in groups_of(Settings)) == len(NAMES)


@pytest.mark.parametrize("name", [name for name, field in NAMES.items() if field.default_factory])
def test_a_default_that_is_computed_is_explained(name: str) -> None:
    assert default_text(NAMES[name])


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_flag_a_variable_and_a_description(name: str) -> None:
    field = NAMES[name]
    assert field.description
    assert flag(name) in parser().format_help()
    assert flag(name) == f"--{name.replace('_', '-')}"
    assert variable(name) == f"NEOPS_REMOTE_LAB_{name.upper()}"


@pytest.mark.parametrize(
    "arguments", ["--no-confg", "--snapshot", "--dry-run", "lab.yml", "-d", "--no-config=yes", "-o none", "-- -v"]
)
def test_arguments_that_netlab_up_does_not_accept_are_refused(arguments: str) -> None:
    with pytest.raises(ValueError, match="NEOPS_REMOTE_LAB_NETLAB_UP_ARGS"):
        read_settings(NetlabSettings, {}, {variable("netlab_up_args"): arguments})


@pytest.mark.parametrize(
    ("arguments", "topology", "start"),
    [
        ("", [], []),
        ("-d frr --no-config", ["-d", "frr"], ["--no-config"]),
        ("-vv --set=a=b -r saved", ["--set=a=b"], ["-vv", "-r", "saved"]),
        ("--defaults a.yml b.yml -q --plugin p", ["--defaults", "a.yml", "b.yml", "--plugin", "p"], ["-q"]),
    ],
)
def test_arguments_that_change_the_topology_are_separated(
    arguments: str, topology: list[str], start: list[str]
) -> None:
    assert up_arguments.split(arguments.split()) == (tuple(topology), tuple(start))


def test_every_setting_can_be_given_by_flag_and_by_variable(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "host": "::1", "port": 9000, "debug": True, "log_level": "WARNING", "log_config": tmp_path / "log.yaml",
        "database": "sqlite+aiosqlite:///x", "synchronous": "EXTRA", "lab_host": "rack-7", "work_dir": tmp_path,
        "lock_dir": tmp_path, "on_exit": "keep", "netlab": "/opt/netlab",
        "netlab_up_args": ("--no-config", "-s", "message=a b"), "docker": "podman", "containers": "no",
        "preload": False, "prestart": True, "lab_network": IPv4Network("172.30.0.0/16"),
        "advertise": "http://rack-7:9000",
        "http_parser": "h11", "host_root": tmp_path, "log_format": "json", "umask": "027",
    }  # fmt: skip
    for name in NAMES.keys() - values.keys():
        values[name] = 3_000_000 if name in {"max_create_bytes", "wal_limit"} else 7
    texts = {name: str(value) for name, value in values.items()} | {"netlab_up_args": "--no-config -s 'message=a b'"}
    by_variable = read_settings(Settings, {}, {variable(name): text for name, text in texts.items()})
    words = [f"{flag(name)}={text}" for name, text in texts.items() if name not in {"debug", "preload", "prestart"}]
    by_flag = read_settings(Settings, vars(parser().parse_args([*words, "--debug", "--no-preload", "--prestart"])), {})
    assert flat(by_flag) == flat(by_variable) == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"),
        ("port", "65536"),
        ("port", "-1"),
        ("log_level", "LOUD"),
        ("on_exit", "burn"),
        ("synchronous", "OFF"),
        ("waiting_timeout", "0"),
        ("waiting_timeout", "soon"),
        ("max_hold", "-1"),
        ("sql_poll", "0"),
        ("lab_threads", "1"),
        ("max_topology_bytes", "1.5"),
        ("debug", "perhaps"),
        ("slots", "0"),
        ("slots", "101"),
        ("lab_network", "10.0.0.0/8"),
        ("lab_network", "10.199.1.0/16"),
    ],
)
def test_an_invalid_value_is_refused_with_its_source(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{flag(name)}: .*{value}"):
        read_settings(Settings, {name: value}, {variable(name): "also wrong"})
    with pytest.raises(ValueError, match=f"{variable(name)}: .*{value}"):
        read_settings(Settings, {}, {variable(name): value})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("lab-2:8000", "lacks the scheme"),
        ("local", "lacks the scheme"),
        ("ftp://lab-2", "another scheme"),
        ("http://", "names no host"),
        ("http://:8000", "names no host"),
        ("http://lab-2:", "lacks the port number"),
        ("http://lab-2:http", "no valid host name or port"),
        ("http://lab-2:70000", "no valid host name or port"),
        ("http://lab-2:0", "no valid port"),
        ("http://lab..2", "no valid host name or port"),
        ("http://lab 2", "a space"),
        ("http://lab-2:8000\n", "a line break"),
        ("http://lab-2/labs", "has a path"),
        ("http://lab-2?secret", "a query or a fragment"),
        ("http://lab-2/#secret", "a query or a fragment"),
        ("http://ann:secret@lab-2", "a user name or a password"),
    ],
)
def test_an_advertised_url_is_scheme_host_and_port(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"--advertise: .* such as http://lab-1:8000") as refusal:
        read_settings(Settings, {"advertise": url}, {})
    assert reason in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("http://lab-2:8000", "http://lab-2:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("HTTPS://lab-2.example/", "https://lab-2.example"),
    ],
)
def test_an_advertised_url_has_no_slash_at_its_end(url: str, used: str) -> None:
    assert read_settings(Settings, {"advertise": url}, {}).service.queue.advertise == used


@pytest.mark.parametrize(
    ("name", "value"),
    [("waiting_timeout", "nan"), ("max_hold", "-inf"), ("sql_poll", "inf"), ("up_timeout", "inf")],
)
def test_a_time_is_a_finite_number_of_seconds(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=flag(name)):
        read_settings(Settings, {name: value}, {})


def test_several_invalid_values_are_reported_together() -> None:
    with pytest.raises(ValueError, match="--port") as refusal:
        read_settings(Settings, {"port": "x"}, {"NEOPS_REMOTE_LAB_ON_EXIT": "burn"})
    assert "NEOPS_REMOTE_LAB_ON_EXIT" in str(refusal.value)


def test_an_invalid_command_line_ends_the_program_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--port", "http"])
    assert end.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_settings_cannot_be_changed_once_they_are_read() -> None:
    settings = read_settings(ServerSettings, {}, {})
    with pytest.raises(ValidationError):
        settings.port = 1


def test_arguments_for_netlab_are_split_as_a_shell_does() -> None:
    assert read_settings(NetlabSettings, {"netlab_up_args": "--no-config -d 'two words'"}, {}).netlab_up_args == (
        "--no-config",
        "-d",
        "two words",
    )
    with pytest.raises(ValueError, match="--netlab-up-args"):
        read_settings(NetlabSettings, {"netlab_up_args": "'not closed"}, {})
