"""Hosts of a finished run whose tables had copies, for ``plan --compare``."""

import pytest

from mail_torchrec.embeddings.communication.replicas import sharding_group
from mail_torchrec.embeddings.hardware import hardware_preset
from mail_torchrec.embeddings.plan_file import PlanContext
from mail_torchrec.planning.compare import check_hosts, hosts_of_run


def context_of(world_size: int, of_host: int, replicas: int) -> PlanContext:
    """What the plan of a run says, whose ranks are those of one copy."""
    group = sharding_group(replicas, world_size, of_host, "cuda")
    return PlanContext(*group, "cuda", "adagrad", {})


@pytest.mark.parametrize(("world_size", "of_host", "replicas"), [(16, 8, 2), (8, 8, 4), (4, 4, 2)])
def test_the_plan_tells_the_ranks_of_a_host_that_has_several_of_each_copy(
    world_size: int, of_host: int, replicas: int
) -> None:
    context = context_of(world_size, of_host, replicas)
    hardware = hardware_preset("h100", hosts_of_run(context, replicas, ()))
    assert hardware.local_world_size == of_host
    check_hosts(context, replicas, hardware)


@pytest.mark.parametrize(("world_size", "of_host", "replicas"), [(32, 8, 16), (32, 8, 8)])
def test_with_as_many_copies_as_ranks_of_a_host_or_more_the_ranks_have_to_be_given(
    world_size: int, of_host: int, replicas: int
) -> None:
    """The plans of hosts of 4 and of 8 ranks are one."""
    context = context_of(world_size, of_host, replicas)
    assert context == context_of(world_size, of_host // 2, replicas)
    with pytest.raises(ValueError, match="ranks of a host should be given"):
        hosts_of_run(context, replicas, ())
    for ranks in (of_host, of_host // 2):
        given = hosts_of_run(context, replicas, (f"local_world_size={ranks}",))
        hardware = hardware_preset("h100", given)
        assert hardware.local_world_size == ranks
        check_hosts(context, replicas, hardware)


@pytest.mark.parametrize(
    ("ranks", "fault"), [(16, "gives 2; change --set"), (3, "or be a multiple of them")]
)
def test_hosts_that_do_not_fit_the_plan_are_refused(ranks: int, fault: str) -> None:
    context = context_of(64, 8, 8)
    hardware = hardware_preset("h100", hosts_of_run(context, 8, (f"local_world_size={ranks}",)))
    with pytest.raises(ValueError, match=fault):
        check_hosts(context, 8, hardware)
