"""``mail-torchrec plan``: every point of the grid, what helps those that do not fit, and the report."""

from pathlib import Path

from mail_torchrec.planning.estimate import Answer, answer
from mail_torchrec.planning.report import table, verdicts, write_report
from mail_torchrec.planning.scenarios import Question
from mail_torchrec.planning.suggestions import remedies
from mail_torchrec.train.assembly import feature_tables_of
from mail_torchrec.train.dense_cost import DenseCost, dense_cost


def ask(question: Question) -> list[Answer]:
    """Answers every point.

    Raises:
        ValueError: a configuration or constraint that cannot be met, whatever the memory.
    """
    answers: list[Answer] = []
    costs: dict[str, DenseCost] = {}
    for case in question.cases():
        model = case.config.model.model_dump_json()
        if model not in costs:
            costs[model] = dense_cost(case.config, feature_tables_of(case.config), case.num_rows)
        found = answer(case, costs[model])
        if not found.fits:
            found.remedies = list(remedies(found))
        answers.append(found)
    return answers


def plan(question: Question, out: Path | None, command: str) -> str:
    """Answers, writes the report where there is a folder for it, and returns what the terminal shows."""
    answers = ask(question)
    lines = [*table(answers), "", *verdicts(answers)]
    if out is not None:
        lines.append("  ".join(map(str, write_report(question, answers, command, out))))
    return "\n".join(lines).rstrip()
