"""A fresh lab for every test of this directory."""

from neops_remote_lab.testing.fixture import remote_lab_fixture

testbed = remote_lab_fixture("testbed.yml")
