"""Describes MovieLens-1M (Harper and Konstan, 2015, grouplens.org/datasets/movielens/1m).

Ratings are the impressions; a rating of 4 or 5 is a click.
"""

from datetime import date
from typing import Any

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.dataset import DatasetSpec, Tables, hour_of_day, join_features
from mail_torchrec.prepare.histories import add_histories
from mail_torchrec.prepare.log_files import (
    LogFile,
    enum_field,
    int32_field,
    int64_field,
    text_field,
)

USERS, MOVIES, RATINGS = "users.dat", "movies.dat", "ratings.dat"
GOOD_RATING = 4
_ATTRIBUTES = ["gender", "age", "occupation", "zip_code"]


def _ratings(tables: Tables) -> Table:
    return tables[RATINGS].mutate(
        user=ibis._.user_id, liked=(ibis._.rating >= GOOD_RATING).cast("int32")
    )


def _impressions(tables: Tables) -> Table:
    ratings = _ratings(tables)
    return ratings.select(
        "user", "time", "user_id", "movie_id", "liked", hour=hour_of_day(ratings.time, 1, 0)
    )


def _features(impressions: Table, tables: Tables, length: int) -> Table:
    movies = tables[MOVIES]
    # Spark would read a bar as a regular expression.
    movies = movies.select("movie_id", genres=movies.genres.replace("|", ",").split(","))
    rows = join_features(join_features(impressions, tables[USERS], "user_id"), movies, "movie_id")
    ratings = _ratings(tables)
    rows = add_histories(rows, ratings, {"rated_seq": "movie_id", "rating_seq": "rating"}, length)
    return add_histories(
        rows, ratings.filter(ratings.liked == 1), {"liked_seq": "movie_id"}, length
    )


def _config(length: int) -> dict[str, Any]:
    sequence = {"group": "behaviour", "kind": "list", "max_length": length}
    columns: dict[str, Any] = {
        "user": {"group": "group_key", "column": "user_id"},
        "liked": {"group": "label"},
    }
    columns |= {name: {"group": "attribute"} for name in _ATTRIBUTES}
    columns["rated_seq"] = sequence | {"table": "movie"}
    columns["rating_seq"] = sequence | {"table": "rating", "action_of": "rated_seq"}
    columns |= {
        "hour": {"group": "context"},
        "movie_id": {"group": "item", "table": "movie"},
        "genres": {"group": "item", "kind": "list"},
    }
    return {
        "schema": {"dim": 32, "columns": columns, "tables": {"rating": {"init_mean": 1.0}}},
        "train": {
            "epochs": 1,
            "batch_size": 1024,
            "tables": {"name": "adagrad", "learning_rate": 0.1},
        },
    }


def _file(name: str, *fields: Any, user: str | None = None, time: str | None = None) -> LogFile:
    return LogFile(name, fields, user, time, separator="::", header=False)


MOVIELENS = DatasetSpec(
    about="MovieLens-1M (Harper and Konstan, 2015). liked: a rating of 4 or 5; rating_seq: the "
    "ratings as published. The files also hold\n"
    "liked_seq, the movies rated 4 or 5 (table movie). The last day has few ratings: --test-days "
    "takes more.",
    files=(
        _file(
            USERS,
            int64_field("user_id"),
            enum_field("gender", "F", "M"),
            int32_field("age"),
            int32_field("occupation"),
            text_field("zip_code", "[ -9;-ÿ]+"),
            user="user_id",
        ),
        _file(
            MOVIES,
            int64_field("movie_id"),
            text_field("title", "(?::?[ -9;-ÿ])+"),
            text_field("genres", "[ -9;-ÿ]+"),
        ),
        _file(
            RATINGS,
            int64_field("user_id"),
            int64_field("movie_id"),
            int32_field("rating"),
            int64_field("time"),
            user="user_id",
            time="time",
        ),
    ),
    folders=("ml-1m",),
    ticks_per_second=1,
    utc_offset=0,
    days=(date(2000, 4, 25), date(2003, 2, 28)),
    select_impressions=_impressions,
    add_features=_features,
    build_config=_config,
)
