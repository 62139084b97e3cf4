"""Plan files: read back unchanged, refused if they were made for another job."""

import json
from pathlib import Path
from typing import Any

import pytest
from torchrec.distributed.types import ShardingPlan

from mail_torchrec.embeddings.plan_file import PlanContext, load_plan, plan_text
from mail_torchrec.embeddings.sharding_plan import PlacedShard, build_parameter_sharding

JOB = PlanContext(2, 2, "cuda", "adagrad", {"user": (1000, 8), "item": (64, 16)})


def plan() -> ShardingPlan:
    halves = [PlacedShard(0, [0, 0], [500, 8]), PlacedShard(1, [500, 0], [500, 8])]
    whole = [PlacedShard(1, [0, 0], [64, 16])]
    hosts = {"device": "cuda", "local_world_size": 2}
    user = build_parameter_sharding(
        "row_wise", "fused_uvm_caching", halves, **hosts, cache_load_factor=0.25
    )
    item = build_parameter_sharding("table_wise", "fused", whole, **hosts)
    return ShardingPlan({"pooled_tables": {"user": user}, "unpooled_tables": {"item": item}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text(plan_text(plan(), JOB))
    return tmp_path / "plan.json"


def test_a_plan_comes_back_as_it_was(path: Path) -> None:
    loaded = load_plan(path, JOB)
    assert loaded.plan.keys() == plan().plan.keys()
    for module, parameters in plan().plan.items():
        assert dict(loaded.plan[module].items()) == dict(parameters.items())
    assert plan_text(loaded, JOB) == path.read_text()


@pytest.mark.parametrize(("changes", "message"), [
    ({"world_size": 4}, "was made for world size 2, this job has 4 ranks; make it anew"),
    ({"local_world_size": 1}, "was made for 2 ranks a host, this job has 1"),
    ({"device": "cpu"}, "was made for cuda, this job runs on cpu"),
    ({"optimizer": "adam"}, "was made for train.tables.name=adagrad, this job has adam"),
    ({"tables": {"user": (2000, 8), "item": (64, 16)}},
     "was made for 'user' of 1,000 x 8, here it has 2,000 x 8"),
    ({"tables": {"user": (1000, 8)}}, "was made for a table 'item', which this job has not"),
    ({"tables": {"user": (1000, 8), "shop": (9, 8)}, "world_size": 8},
     "world size 2, this job has 8 ranks; a table 'item', which this job has not; "
     "no table 'shop', which this job has"),
])  # fmt: skip
def test_a_plan_for_another_job_is_refused_with_every_difference(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        load_plan(path, PlanContext(**vars(JOB) | changes))
    assert message in str(error.value)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda tree: tree["tables"]["user"]["shards"].pop(),
     "its shards of 'user' do not cover 1,000 x 8 on 2 ranks"),
    (lambda tree: tree["tables"]["item"]["shards"][0].__setitem__(0, 2),
     "its shards of 'item' do not cover 64 x 16 on 2 ranks"),
    (lambda tree: tree["tables"].pop("item"), "it does not place"),
    (lambda tree: tree["tables"]["item"].pop("module"), "is damaged"),
    (lambda tree: tree["made_for"].pop("optimizer"), "is damaged"),
    (lambda tree: tree.update(version=1), "should be a plan of version 2, received version 1"),
])  # fmt: skip
def test_a_damaged_plan_is_refused(path: Path, damage: Any, message: str) -> None:
    tree = json.loads(path.read_text())
    damage(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError) as error:
        load_plan(path, JOB)
    assert message in str(error.value)


def test_no_plan_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no plan at .* mail-torchrec plan writes one"):
        load_plan(tmp_path / "plan.json", JOB)
    (tmp_path / "plan.json").write_text("{}\n")
    with pytest.raises(ValueError, match="received version None"):
        load_plan(tmp_path / "plan.json", JOB)
    (tmp_path / "plan.json").write_text("a plan")
    with pytest.raises(ValueError, match="is no plan"):
        load_plan(tmp_path / "plan.json", JOB)
