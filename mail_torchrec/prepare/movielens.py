"""MovieLens-1M (Harper and Konstan, 2015, grouplens.org/datasets/movielens/1m): ratings as impressions, a rating of 4 or 5 as a click."""

from typing import Any

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.dataset import Dataset, Tables, hour, look_up
from mail_torchrec.prepare.files import RawFile, one_of, small, text, whole
from mail_torchrec.prepare.histories import with_histories

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
        "user", "time", "user_id", "movie_id", "liked", hour=hour(ratings.time, 1, 0)
    )


def _rows(impressions: Table, tables: Tables, length: int) -> Table:
    movies = tables[MOVIES]
    # Spark would take a bar for a regular expression.
    movies = movies.select("movie_id", genres=movies.genres.replace("|", ",").split(","))
    rows = look_up(look_up(impressions, tables[USERS], "user_id"), movies, "movie_id")
    ratings = _ratings(tables)
    rows = with_histories(rows, ratings, {"rated_seq": "movie_id", "rating_seq": "rating"}, length)
    return with_histories(
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


def _file(name: str, *fields: Any, key: str | None = None) -> RawFile:
    return RawFile(name, fields, key=key, separator="::", header=False)


MOVIELENS = Dataset(
    about="MovieLens-1M (Harper and Konstan, 2015). liked: a rating of 4 or 5; rating_seq: the ratings as published. The files also hold\n"
    "liked_seq, the movies rated 4 or 5 (table movie). The last day has few ratings: --test-days takes more.",
    files=(
        _file(
            USERS,
            whole("user_id"),
            one_of("gender", "F", "M"),
            small("age"),
            small("occupation"),
            text("zip_code", "[^:]+"),
            key="user_id",
        ),
        _file(MOVIES, whole("movie_id"), text("title", "(?::?[^:])+"), text("genres", "[^:]+")),
        _file(
            RATINGS,
            whole("user_id"),
            whole("movie_id"),
            small("rating"),
            whole("time"),
            key="user_id",
        ),
    ),
    folders=("ml-1m",),
    second=1,
    utc_offset=0,
    impressions=_impressions,
    rows=_rows,
    config=_config,
)
