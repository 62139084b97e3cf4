"""A diagnosis as text, as JSON and as one page with pictures that needs nothing else."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mail_torchrec.data_check.scan import day_name
from mail_torchrec.diagnose.cold_rows import ColdRows
from mail_torchrec.diagnose.new_items import HELD_OUT as ITEMS_HELD_OUT
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import HELD_OUT, NewUserValue
from mail_torchrec.diagnose.pictures import draw_aucs, draw_days, draw_staying
from mail_torchrec.diagnose.verdict import Verdict, gain_text, share_text
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.run_files import write_file

PAGE, NUMBERS = "diagnosis.html", "diagnosis.json"
_DAYS = 40
"""Days that the table of cold rows shows, at most."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Args:
        data: which rows were read.
        cold: cold rows.
        new_users: answers for new users.
        new_items: answers for new items.
        verdict: closing sentences.
    """

    data: str
    cold: ColdRows
    new_users: NewUserValue
    new_items: NewItemValue
    verdict: Verdict

    def text(self) -> str:
        """Formats the diagnosis for a terminal."""
        blocks = [block for block in self._blocks() if not block.startswith("![")]
        text = "\n\n".join(block.rstrip("\n") for block in blocks)
        # Names of columns may hold commands of terminals.
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)

    def write(self, folder: Path) -> None:
        """Writes the page and the numbers.

        Args:
            folder: to write to, made where it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as drawn:
            pictures = Path(drawn)
            if self.new_users.aucs:
                draw_aucs(self.new_users.aucs, pictures / "users.png")
            if self.new_items.aucs:
                draw_aucs(self.new_items.aucs, pictures / "items.png")
            if self.cold.days:
                draw_days(self.cold.days, _new_items_of_day(self.cold), pictures / "days.png")
            if self.cold.staying is not None:
                draw_staying(self.cold.staying, pictures / "staying.png")
            page = markdown_to_html("\n\n".join(self._blocks()), pictures)
        write_file(folder / PAGE, page.encode())
        numbers = json.dumps(self.numbers(), indent=2, allow_nan=False)
        write_file(folder / NUMBERS, f"{numbers}\n".encode())

    def numbers(self) -> dict[str, Any]:
        """Returns everything as plain values; intervals as ``mean``, ``low``, ``high``."""
        found: dict[str, Any] = _plain(asdict(self))
        for day in found["cold"]["days"]:
            day["day"] = day_name(day["day"])
        return found

    def _blocks(self) -> Iterator[str]:
        """Yields the blocks of the report in Markdown."""
        yield "# What would help new users and new items"
        yield "\n".join(f"- {sentence}" for sentence in self.verdict.sentences)
        yield self.data
        yield "## New users"
        yield from self._of_users()
        yield "## New items"
        yield from self._of_items()
        yield "## Cold rows"
        yield from self._of_cold_rows()

    def _of_users(self) -> Iterator[str]:
        found = self.new_users
        if found.aucs is None:
            yield f"No answer: {found.why_none}."
            return
        yield (
            f"Trees fitted on the rows of {1 - HELD_OUT:.0%} of the users, measured on the "
            f"{found.num_rows:,} test rows with a history of {found.num_users:,} other users."
        )
        yield "![AUC on users whom the trees have not seen, by what the trees are given](users.png)"
        yield _auc_table(found.aucs)
        rows = [
            ["histories, beside attributes", gain_text(found.histories)],
            ["attributes, beside item and context", gain_text(found.attributes)],
            ["their share of what histories are worth", share_text(found.attribute_share)],
            ["predicted histories, beside attributes", gain_text(found.predicted)],
            ["their share of what histories add", share_text(found.recovered)],
            ["attributes crossed with the item", gain_text(found.crosses)],
            ["to have learnt to do without histories", gain_text(found.empty_input)],
            ["mean histories, for trees used to histories", gain_text(found.mean_fill)],
            ["predicted histories instead of the mean, for these", gain_text(found.virtual)],
            ["to have learnt to do without, over the best of these", gain_text(found.learnt)],
        ]
        yield markdown_table(["what it is worth to new users, in AUC", ""], rows)
        if found.explained:
            best = sorted(found.explained.items(), key=lambda pair: -pair[1])[:8]
            explained = [[name, f"{max(value, 0):.0%}"] for name, value in best]
            yield markdown_table(["history's statistic", "explained by attributes"], explained)
        if found.left_out:
            yield f"Left out, for they name users: {', '.join(found.left_out)}."

    def _of_items(self) -> Iterator[str]:
        found = self.new_items
        if found.aucs is None:
            yield f"No answer: {found.why_none}."
            return
        num_rows, items = f"{found.num_rows:,}", f"{found.num_items:,}"
        yield (
            f"Trees fitted without {ITEMS_HELD_OUT:.0%} of the items, measured on the {num_rows} "
            f'test rows of {items} of them; "item known" is fitted on all training rows, with ids.'
            if found.rule is None
            else f"Trees fitted without the new items (those of which {found.rule}), measured on "
            f'the {num_rows} test rows of {items} of them; "item known" is fitted on all training '
            "rows and the test rows that other users have of them, with ids."
        )
        yield "![AUC on items that the trees have not seen, by what the trees are given](items.png)"
        yield _auc_table(found.aucs)
        rows = [
            ["the item's other columns, beside user and context", gain_text(found.columns)],
            ["content vectors, beside these", gain_text(found.content)],
            ["to know the item, beside all of these", gain_text(found.known)],
        ]
        yield markdown_table(["what it is worth to new items, in AUC", ""], rows)

    def _of_cold_rows(self) -> Iterator[str]:
        cold = self.cold
        rows = [
            ["training rows of new users", f"{cold.train_new_users:.1%}"],
            ["test rows of new users", f"{cold.test_new_users:.1%}"],
            ["test rows of users that training has not", f"{cold.test_unseen_users:.1%}"],
            [_new_items_of_test(cold), f"{cold.test_new_items:.1%}"],
        ]
        yield markdown_table(["as they are, without data.cold_start", "share"], rows)
        if not cold.is_whole:
            yield (
                "Not all rows were read: shares of users and items that training has not, or "
                "seldom, are upper bounds."
            )
        if not cold.days:
            yield "By day: no column of the files holds the day of a row."
            return
        yield "![Share of the rows that are cold, by day](days.png)"
        days = [
            [day_name(day.day), f"{day.num_rows:,}", f"{day.new_users:.1%}",
             "-" if day.new_items is None else f"{day.new_items:.1%}"]
            for day in cold.days[-_DAYS:]
        ]  # fmt: skip
        if len(cold.days) > _DAYS:
            yield (
                f"The table has the last {_DAYS} of {len(cold.days)} days; {NUMBERS} has all of "
                f"them, from {day_name(cold.days[0].day)} on."
            )
        yield markdown_table(["day", "rows", "new users", _new_items_of_day(cold)], days)
        yield from self._of_staying()

    def _of_staying(self) -> Iterator[str]:
        staying = self.cold.staying
        if staying is None:
            yield "How long a user stays new: fewer than 20 users were seen to begin as new."
            return
        days = staying.median_days
        stay = (
            f"half of them have a history {days} days after their first row"
            if days is not None
            else "more than half of them are still new at the end"
        )
        yield (
            f"Of {staying.num_users:,} users whose first row is new, {staying.num_left:,} were "
            f"seen with a history later; {stay}. A user has {staying.rows_while_new:.1f} rows "
            "while new."
        )
        yield "![Users who are still new, by days since their first row](staying.png)"


def _new_items_of_test(cold: ColdRows) -> str:
    if cold.item_rule is None:
        return "test rows of items that training has not"
    return f"test rows of new items ({cold.item_rule})"


def _new_items_of_day(cold: ColdRows) -> str:
    return "items on no earlier day" if cold.item_rule is None else "new items"


def _auc_table(aucs: Mapping[str, Interval]) -> str:
    rows = [
        [name, f"{auc.mean:.4f}", f"[{auc.low or 0:.4f}, {auc.high or 0:.4f}]"]
        for name, auc in aucs.items()
    ]
    return markdown_table(["what the trees are given", "AUC", "95 % interval"], rows)


def _plain(value: Any) -> Any:
    """Drops the number of seeds of intervals; numbers that are none, such as 0 / 0, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if key != "num_seeds"}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
