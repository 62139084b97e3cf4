"""Small logs in the published layouts, read back by plain Python."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from tools.alimama_log import write_logs

DAY = 86_400
KUAIRAND_LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
_KUAIRAND_LOG = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment"
_KUAIRAND_LOG += ",is_forward,is_hate,long_view,play_time_ms"
_KUAIRAND_LOG += ",duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
_KUAIRAND_USER = "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author"
_KUAIRAND_USER += ",follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range"
_KUAIRAND_USER += ",friend_user_num,friend_user_num_range,register_days,register_days_range,"
_KUAIRAND_USER += ",".join(f"onehot_feat{number}" for number in range(18))
_KUAIRAND_VIDEO = "video_id,author_id,video_type,upload_dt,upload_type,visible_status"
_KUAIRAND_VIDEO += ",video_duration,server_width,server_height,music_id,music_type,tag"


def alimama(raw: Path) -> None:
    """Writes the measuring tool's logs, and instants shared by impressions and behaviours."""
    write_logs(3_000, raw)
    sample = read(raw / "raw_sample.csv")
    with (raw / "behavior_log.csv").open("a") as log:
        for row in sample[:40]:
            user, time = row["user"], int(row["time_stamp"])
            log.write(f"{user},{time},buy,1,2\n{user},{time - 1},fav,3,4\n")


def kuairand(raw: Path) -> None:
    """Writes two log files that share instants, quoted ranges and tags, nulls."""
    random = np.random.default_rng(0)
    folder = raw / "data"
    folder.mkdir(parents=True)
    for name, first in zip(KUAIRAND_LOGS, (0, 2), strict=True):
        lines = [_KUAIRAND_LOG]
        for _ in range(150):
            time = (
                1_650_902_400_000
                + first * DAY * 1_000
                + int(random.integers(0, 2 * 24)) * 3_600_000
            )
            click, like, long_view = random.integers(0, 2, 3)
            user, video = random.integers(0, 6), random.integers(0, 9)
            done = f"{click},{like},0,0,0,0,{long_view}"
            lines.append(f"{user},{video},20220426,1200,{time},{done},1,2,0,0,0,0,1")
        (folder / name).write_text("\n".join(lines) + "\n")
    hot = ",".join(["1", "2.0", "", *["0"] * 15])
    users = [
        f'{user},full_active,0,0,1,5,"(0,10]",1,"[1,10)",0,0,100,"91-180",{hot}'
        for user in range(5)
    ]  # user 5 is not known
    (folder / "user_features_pure.csv").write_text("\n".join([_KUAIRAND_USER, *users]) + "\n")
    videos = [
        f"{video},{video % 3},NORMAL,2022-04-01,LongImport,1,"
        f"{'' if video == 2 else '60000.0'},720,1280,{10**12},9.0,"
        for video in range(9)
    ]
    tags = ['"1,12"', "39", "", *["8"] * 6]
    (folder / "video_features_basic_pure.csv").write_text(
        "\n".join([_KUAIRAND_VIDEO, *map("".join, zip(videos, tags, strict=True))]) + "\n"
    )


def movielens(raw: Path) -> None:
    """Writes users who rate several movies a second, a title in Latin-1 and one with colons."""
    random = np.random.default_rng(0)
    raw.mkdir(parents=True)
    (raw / "users.dat").write_text(
        "".join(f"{user}::{'MF'[user % 2]}::25::{user}::4806{user}\n" for user in range(6))
    )
    titles = [
        "Misérables, Les (1995)",
        "Alien: Director's: Cut (1979)",
        *[f"Movie {number} (1999)" for number in range(8)],
    ]
    lines = [
        f"{movie}::{title}::{'Drama|War' if movie % 2 else 'Comedy'}\n"
        for movie, title in enumerate(titles)
    ]
    (raw / "movies.dat").write_text("".join(lines), encoding="latin-1")
    rows = [
        (
            random.integers(0, 6),
            random.integers(0, 10),
            random.integers(1, 6),
            random.integers(0, 60),
        )
        for _ in range(250)
    ]
    (raw / "ratings.dat").write_text(
        "".join(
            f"{user}::{movie}::{rating}::{978_300_000 + 3_600 * time}\n"
            for user, movie, rating, time in rows
        )
    )


WRITERS = {"alimama": alimama, "kuairand": kuairand, "movielens": movielens}


def read(path: Path) -> list[dict[str, str]]:
    """Reads the lines of a file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def newest_before(
    events: list[tuple[int, int, Any]], user: int, time: int, length: int
) -> list[Any]:
    """Finds the newest values strictly before an instant, by brute force.

    ``events`` are (user, time, value), in the order that ties should keep.
    """
    return [
        value
        for who, when, value in sorted(events, key=lambda event: event[1])
        if who == user and when < time
    ][-length:]
