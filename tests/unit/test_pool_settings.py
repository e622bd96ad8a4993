from __future__ import annotations

import pytest
from tdb_server.pool_settings import RayPoolSettings
from tdb_server.settings import parse_settings


def settings(*flags: str):
    return parse_settings(["serve", *flags], environment={})


def test_workers_are_local_unless_told_otherwise():
    assert settings().ray is None
    assert settings("--ray-address", "auto").ray is None


def test_ray_takes_its_numbers_from_the_workers():
    assert settings("--pool", "ray").ray == RayPoolSettings()
    found = settings("--pool", "ray", "--workers", "2", "--ray-max-workers", "5", "--ray-gpus", "0.5").ray
    assert (found.min_replicas, found.max_replicas, found.gpus_per_replica) == (2, 5, 0.5)
    assert settings("--pool", "ray", "--workers", "3").ray.max_replicas == 3


def test_an_empty_address_starts_ray_here():
    assert settings("--pool", "ray", "--ray-address", "").ray.address == "local"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--workers", "3", "--ray-max-workers", "2"), "less than --workers"),
        (("--devices", "cuda:0,cuda:1"), "Ray decides which GPU"),
        (("--device", "cuda:1"), "Ray decides which GPU"),
        (("--ray-gpus", "0"), "must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, reason, capsys):
    with pytest.raises(SystemExit) as refused:
        settings("--pool", "ray", *flags)
    assert refused.value.code == 2
    assert reason in capsys.readouterr().err
