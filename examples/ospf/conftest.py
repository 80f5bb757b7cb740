"""One lab for all tests of this directory: it is built for the first of them and torn down after the last."""

from neops_remote_lab.testing.fixture import remote_lab_fixture

ospf = remote_lab_fixture("ospf.yml", reuse_lab=True)
