"""cluster-onprem.yaml on real hosts: what it does not share with cluster.yaml."""

import pytest

from tests.cluster.conftest import Machines, up

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_ray_up_starts_every_machine_of_one_s_own(machines: Machines) -> None:
    up(machines, "cluster-onprem.yaml")
    machines.operator.run("ray down --yes ~/cluster-onprem.yaml")
