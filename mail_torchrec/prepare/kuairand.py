"""Describes KuaiRand-Pure, short videos (Gao et al., CIKM 2022, kuairand.com, CC BY-SA 4.0).

Histories come from the log of impressions itself.
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
    float_field,
    int32_field,
    int64_field,
    text_field,
)

LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
USERS, VIDEOS = "user_features_pure.csv", "video_features_basic_pure.csv"
BEIJING = 8 * 3_600
_RANGES = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
_ONE_HOT = [f"onehot_feat{number}" for number in range(18)]
_ATTRIBUTES = [
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    *(f"{name}_range" for name in _RANGES),
    *_ONE_HOT,
]
_ITEM = ["author_id", "video_type", "upload_type", "music_id", "music_type"]
_LOG_FIELDS = (
    *(
        int64_field("user_id"),
        int64_field("video_id"),
        int32_field("date"),
        int32_field("hourmin"),
        int64_field("time_ms"),
        binary_field("is_click"),
        binary_field("is_like"),
    ),
    *(
        binary_field("is_follow"),
        binary_field("is_comment"),
        binary_field("is_forward"),
        binary_field("is_hate"),
        binary_field("long_view"),
        float_field("play_time_ms"),
    ),
    *(
        float_field("duration_ms"),
        float_field("profile_stay_time"),
        float_field("comment_stay_time"),
        binary_field("is_profile_enter"),
        binary_field("is_rand"),
        int32_field("tab"),
    ),
)
_USER_FIELDS = (
    *(
        int64_field("user_id"),
        text_field("user_active_degree"),
        text_field("is_lowactive_period"),
        text_field("is_live_streamer"),
        text_field("is_video_author"),
    ),
    *(text_field(column) for name in _RANGES for column in (name, f"{name}_range")),
    *(text_field(name) for name in _ONE_HOT),
)
_VIDEO_FIELDS = (
    *(
        int64_field("video_id"),
        text_field("author_id"),
        text_field("video_type"),
        text_field("upload_dt"),
        text_field("upload_type"),
        text_field("visible_status"),
    ),
    *(
        float_field("video_duration", optional=True),
        text_field("server_width"),
        text_field("server_height"),
        text_field("music_id"),
        text_field("music_type"),
        text_field("tag"),
    ),
)


def _log(tables: Tables) -> Table:
    first, second = (tables[name] for name in LOGS)
    return first.union(second).mutate(user=ibis._.user_id, time=ibis._.time_ms)


def _impressions(tables: Tables) -> Table:
    log = _log(tables)
    return log.select(
        "user",
        "time",
        "user_id",
        "video_id",
        "tab",
        "is_click",
        "long_view",
        "is_like",
        hour=hour_of_day(log.time, 1_000, BEIJING),
    )


def _features(impressions: Table, tables: Tables, length: int) -> Table:
    users = tables[USERS].select("user_id", *_ATTRIBUTES)
    rows = join_features(impressions, users, "user_id")
    rows = join_features(rows, _videos(tables), "video_id")
    events = _events(tables)
    is_watched = (events.is_click == 1) | (events.long_view == 1) | (events.is_like == 1)
    watched = {"watch_seq": "video_id", "watch_action_seq": "action"}
    rows = add_histories(rows, events.filter(is_watched), watched, length)
    long_views = events.filter(events.long_view == 1)
    rows = add_histories(rows, long_views, {"long_view_seq": "video_id"}, length)
    return add_histories(rows, events.filter(~is_watched), {"skip_seq": "video_id"}, length)


def _videos(tables: Tables) -> Table:
    videos = tables[VIDEOS]
    tags = videos.tag.split(",").map(lambda tag: tag.try_cast("int64"))
    return videos.select("video_id", *_ITEM, "video_duration", tag=tags)


def _events(tables: Tables) -> Table:
    """Selects what users did with each video: action 3 liked, 2 watched long, 1 otherwise."""
    log = _log(tables)
    action = ibis.cases((log.is_like == 1, 3), (log.long_view == 1, 2), else_=1).cast("int32")
    return log.select("user", "time", "video_id", "is_click", "long_view", "is_like", action=action)


def _config(length: int) -> dict[str, Any]:
    sequence = {"group": "behaviour", "kind": "list", "max_length": length}
    columns: dict[str, Any] = {
        "user": {"group": "group_key", "column": "user_id"},
        "is_click": {"group": "label"},
    }
    columns["long_view"] = {"group": "conversion"}  # for model.multi_task={}
    columns |= {name: {"group": "attribute"} for name in _ATTRIBUTES}
    columns["watch_seq"] = sequence | {"table": "video"}
    columns["watch_action_seq"] = sequence | {"table": "action", "action_of": "watch_seq"}
    columns |= {
        "tab": {"group": "context"},
        "hour": {"group": "context"},
        "video_id": {"group": "item", "table": "video"},
    }
    columns |= {name: {"group": "item"} for name in _ITEM} | {
        "tag": {"group": "item", "kind": "list"}
    }
    columns["video_duration"] = {"group": "item", "kind": "numeric", "transform": "log"}
    return {
        "schema": {"dim": 32, "columns": columns, "tables": {"action": {"init_mean": 1.0}}},
        "train": {
            "epochs": 1,
            "batch_size": 1024,
            "tables": {"name": "adagrad", "learning_rate": 0.1},
        },
    }


KUAIRAND = DatasetSpec(
    about="KuaiRand-Pure (Gao et al., CIKM 2022; CC BY-SA 4.0). Histories: videos clicked, watched "
    "long or liked; actions: 3 liked,\n"
    "2 watched long, 1 clicked. The files also hold is_like (a label) and the sequences "
    "long_view_seq and skip_seq (shown,\n"
    "and neither clicked nor watched long nor liked), both for table video.",
    files=(
        *(LogFile(name, _LOG_FIELDS, "user_id", "time_ms") for name in LOGS),
        LogFile(USERS, _USER_FIELDS, user_field="user_id"),
        LogFile(VIDEOS, _VIDEO_FIELDS),
    ),
    folders=("data", "KuaiRand-Pure/data"),
    ticks_per_second=1_000,
    utc_offset=BEIJING,
    days=(date(2022, 4, 8), date(2022, 5, 8)),
    select_impressions=_impressions,
    add_features=_features,
    build_config=_config,
)
