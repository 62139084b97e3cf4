"""Describes Taobao display ads (Alimama, tianchi.aliyun.com/dataset/56), the paper's data set.

Behaviours name no ad, only a category and a brand, so a history is a sequence over categories and
one over brands; each shares its table with the target ad's own category or brand.
"""

from datetime import date
from typing import Any

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.dataset import DatasetSpec, Tables, hour_of_day, join_features
from mail_torchrec.prepare.histories import add_histories
from mail_torchrec.prepare.log_files import (
    LogFile,
    binary_field,
    enum_field,
    float_field,
    int32_field,
    int64_field,
    text_field,
)

SAMPLE, ADS, PROFILES, LOG = (
    "raw_sample.csv",
    "ad_feature.csv",
    "user_profile.csv",
    "behavior_log.csv",
)
ACTIONS = {"pv": 1, "fav": 2, "cart": 3, "buy": 4}
BEIJING = 8 * 3_600
_PROFILE = [
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
]
_ATTRIBUTES = [*_PROFILE, "new_user_class_level"]
_ITEM = ["adgroup_id", "cate_id", "campaign_id", "customer", "brand"]


def _impressions(tables: Tables) -> Table:
    rows = tables[SAMPLE].rename(time="time_stamp", user_id="user").mutate(user=ibis._.user_id)
    return rows.mutate(hour=hour_of_day(rows.time, 1, BEIJING)).drop("nonclk")


def _features(impressions: Table, tables: Tables, length: int) -> Table:
    rows = join_features(
        join_features(impressions, tables[ADS], "adgroup_id"),
        tables[PROFILES].rename(user="userid"),
        "user",
    )
    log = tables[LOG]
    action = log.btag.cases(*ACTIONS.items()).cast("int32")
    events = log.select("user", "cate", "brand", time="time_stamp", action=action)
    rows = add_histories(
        rows, events, {"cates": "cate", "brands": "brand", "actions": "action"}, length
    )
    bought = events.filter(events.action == ACTIONS["buy"])
    return add_histories(rows, bought, {"bought_cates": "cate", "bought_brands": "brand"}, length)


def _config(length: int) -> dict[str, Any]:
    sequence = {"group": "behaviour", "kind": "list", "max_length": length}
    columns: dict[str, Any] = {
        "user": {"group": "group_key", "column": "user_id"},
        "clk": {"group": "label"},
    }
    columns |= {name: {"group": "attribute"} for name in _ATTRIBUTES}
    for name in ("cate", "brand"):
        columns[f"{name}s"] = sequence | {"table": "cate_id" if name == "cate" else name}
        columns[f"{name}_actions"] = sequence | {
            "column": "actions",
            "table": "action",
            "action_of": f"{name}s",
        }
    columns |= {"pid": {"group": "context"}, "hour": {"group": "context"}}
    columns |= {name: {"group": "item"} for name in _ITEM} | {
        "price": {"group": "item", "kind": "numeric", "transform": "log"}
    }
    # The paper's setting; its Adam for the tables needs CUDA, so Adagrad stands here.
    return {
        "schema": {"dim": 32, "columns": columns, "tables": {"action": {"init_mean": 1.0}}},
        "train": {
            "epochs": 1,
            "batch_size": 1024,
            "tables": {"name": "adagrad", "learning_rate": 0.1},
        },
    }


ALIMAMA = DatasetSpec(
    about="Taobao display ads (Alimama). Actions: 1 page view, 2 favourite, 3 cart, 4 purchase. "
    "The files also hold the sequences\n"
    "bought_cates (table cate_id) and bought_brands (table brand): add them as behaviour columns "
    "where you want them.",
    files=(
        LogFile(
            SAMPLE,
            (
                int64_field("user"),
                int64_field("time_stamp"),
                int64_field("adgroup_id"),
                text_field("pid", "[0-9A-Za-z_]+"),
                binary_field("nonclk"),
                binary_field("clk"),
            ),
            user_field="user",
            time_field="time_stamp",
        ),
        LogFile(
            ADS,
            (
                int64_field("adgroup_id"),
                int32_field("cate_id"),
                int64_field("campaign_id"),
                int64_field("customer"),
                int32_field("brand", optional=True),
                float_field("price"),
            ),
        ),
        LogFile(
            PROFILES,
            (int64_field("userid"), *(int32_field(name, optional=True) for name in _ATTRIBUTES)),
            user_field="userid",
        ),
        LogFile(
            LOG,
            (
                int64_field("user"),
                int64_field("time_stamp"),
                enum_field("btag", *ACTIONS),
                int32_field("cate"),
                int32_field("brand"),
            ),
            user_field="user",
            time_field="time_stamp",
        ),
    ),
    folders=(),
    ticks_per_second=1,
    utc_offset=BEIJING,
    days=(date(2017, 4, 22), date(2017, 5, 13)),
    select_impressions=_impressions,
    add_features=_features,
    build_config=_config,
)
