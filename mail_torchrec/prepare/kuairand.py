"""KuaiRand-Pure, short videos (Gao et al., CIKM 2022, kuairand.com, CC BY-SA 4.0): histories come from the log of impressions itself."""

from typing import Any

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.dataset import Dataset, Tables, hour, look_up
from mail_torchrec.prepare.files import RawFile, flag, real, small, text, whole
from mail_torchrec.prepare.histories import with_histories

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
        whole("user_id"),
        whole("video_id"),
        small("date"),
        small("hourmin"),
        whole("time_ms"),
        flag("is_click"),
        flag("is_like"),
    ),
    *(
        flag("is_follow"),
        flag("is_comment"),
        flag("is_forward"),
        flag("is_hate"),
        flag("long_view"),
        real("play_time_ms"),
    ),
    *(
        real("duration_ms"),
        real("profile_stay_time"),
        real("comment_stay_time"),
        flag("is_profile_enter"),
        flag("is_rand"),
        small("tab"),
    ),
)
_USER_FIELDS = (
    *(
        whole("user_id"),
        text("user_active_degree"),
        text("is_lowactive_period"),
        text("is_live_streamer"),
        text("is_video_author"),
    ),
    *(text(column) for name in _RANGES for column in (name, f"{name}_range")),
    *(text(name) for name in _ONE_HOT),
)
_VIDEO_FIELDS = (
    *(
        whole("video_id"),
        text("author_id"),
        text("video_type"),
        text("upload_dt"),
        text("upload_type"),
        text("visible_status"),
    ),
    *(
        real("video_duration", optional=True),
        text("server_width"),
        text("server_height"),
        text("music_id"),
        text("music_type"),
        text("tag"),
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
        hour=hour(log.time, 1_000, BEIJING),
    )


def _rows(impressions: Table, tables: Tables, length: int) -> Table:
    users, videos = tables[USERS].select("user_id", *_ATTRIBUTES), tables[VIDEOS]
    tags = videos.tag.split(",").map(lambda tag: tag.try_cast("int64"))
    videos = videos.select("video_id", *_ITEM, "video_duration", tag=tags)
    rows = look_up(look_up(impressions, users, "user_id"), videos, "video_id")
    log = _log(tables)
    action = ibis.cases((log.is_like == 1, 3), (log.long_view == 1, 2), else_=1).cast("int32")
    events = log.select(
        "user", "time", "video_id", "is_click", "long_view", "is_like", action=action
    )
    liked = (events.is_click == 1) | (events.long_view == 1) | (events.is_like == 1)
    rows = with_histories(
        rows, events.filter(liked), {"watch_seq": "video_id", "watch_action_seq": "action"}, length
    )
    rows = with_histories(
        rows, events.filter(events.long_view == 1), {"long_view_seq": "video_id"}, length
    )
    return with_histories(rows, events.filter(~liked), {"skip_seq": "video_id"}, length)


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


KUAIRAND = Dataset(
    about="KuaiRand-Pure (Gao et al., CIKM 2022; CC BY-SA 4.0). Histories: videos clicked, watched long or liked; actions: 3 liked,\n"
    "2 watched long, 1 clicked. The files also hold is_like (a label) and the sequences long_view_seq and skip_seq (shown,\n"
    "and neither clicked nor watched long nor liked), both for table video.",
    files=(
        *(RawFile(name, _LOG_FIELDS, key="user_id") for name in LOGS),
        RawFile(USERS, _USER_FIELDS, key="user_id"),
        RawFile(VIDEOS, _VIDEO_FIELDS),
    ),
    folders=("data", "KuaiRand-Pure/data"),
    second=1_000,
    utc_offset=BEIJING,
    impressions=_impressions,
    rows=_rows,
    config=_config,
)
