"""docs/scale.md is what its measurements give, and its models are those that it names."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model() -> ModuleType:
    """benchmarks/scale/model.py, which is no part of a package."""
    spec = spec_from_file_location("scale_model", REPOSITORY / "benchmarks/scale/model.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_that_the_code_computes_from_what_was_measured() -> None:
    check = subprocess.run([sys.executable, "benchmarks/scale", "check"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr


def test_a_fit_finds_the_constants_that_times_were_made_with(model: ModuleType) -> None:
    made = model.Loopback({2: 0.001, 4: 0.004, 8: 0.02}, 2e9)
    rows = [
        {"workers": workers, "bytes": size, "median_s": made.all_reduce_s(workers, size)}
        for workers in made.call_s
        for size in (1_000_000, 10_000_000, 100_000_000)
    ]
    fitted = model.Loopback.fitted(rows)
    assert fitted.call_s == pytest.approx(made.call_s)
    assert fitted.bytes_per_s == pytest.approx(made.bytes_per_s)


def test_a_large_sum_takes_what_a_ring_sends_and_a_small_one_the_way_around(model: ModuleType) -> None:
    cluster = model.CLUSTERS[0]
    size = 1e12
    assert cluster.all_reduce_s(8, size) == pytest.approx(2 * 7 / 8 * size / cluster.inside_bytes_per_s, rel=1e-3)
    assert cluster.all_reduce_s(64, size) == pytest.approx(2 * 63 / 64 * size / cluster.between_bytes_per_s, rel=1e-3)
    assert cluster.all_reduce_s(1, size) == 0
    assert cluster.all_reduce_s(512, 1) < cluster.all_reduce_s(8, 1) * 20, "a tree's way is logarithmic"
    assert cluster.all_reduce_s(512, 1) > cluster.all_reduce_s(64, 1) > cluster.all_reduce_s(8, 1)


def test_more_workers_are_never_more_efficient_where_the_batch_is_shared_and_an_image_is_the_least(model: ModuleType) -> None:
    network = model.Network("airbench94", 1_972_792, 107, 707_777_088, 228, 6_333_530_112, [2_370_560, 5_514_848], 12)
    for cluster in model.CLUSTERS:
        efficiencies = [network.fixed_batch(cluster, 2**power) for power in range(10)]
        assert efficiencies[0] == pytest.approx(1)
        assert efficiencies == sorted(efficiencies, reverse=True)
        assert network.fixed_batch(cluster, network.batch_size + 1) is None
        assert (
            network.fixed_batch(cluster, network.pays_up_to(cluster)) >= 0.5 > network.fixed_batch(cluster, 2 * network.pays_up_to(cluster))
        )
