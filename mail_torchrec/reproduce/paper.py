"""Holds the paper's own metrics (Feng et al., CIKM 2021, Tables 2 and 3).

They are shown beside ours where the dataset is the paper's.
"""

import json
from pathlib import Path

Values = dict[str, tuple[float, float, float, float]]
"""AUC and GAUC of new users, AUC and GAUC of old ones, by method."""

TABLE_2: dict[str, Values] = {
    "public": {
        "Emblr": (0.5800, 0.5607, 0.6252, 0.5892),
        "LLAE": (0.5854, 0.5646, 0.6253, 0.5892),
        "BaseDNN": (0.5862, 0.5658, 0.6271, 0.5897),
        "MetaEmb": (0.5911, 0.5682, 0.6273, 0.5900),
        "MAIL-BaseDNN": (0.5934, 0.5710, 0.6271, 0.5898),
        "DMR": (0.5879, 0.5668, 0.6302, 0.5911),
        "MAIL-DMR": (0.5958, 0.5733, 0.6302, 0.5915),
    },
    "industrial": {
        "Emblr": (0.6682, 0.6365, 0.7728, 0.6419),
        "LLAE": (0.6713, 0.6384, 0.7737, 0.6422),
        "BaseDNN": (0.6771, 0.6380, 0.7782, 0.6459),
        "MetaEmb": (0.6834, 0.6404, 0.7788, 0.6466),
        "MAIL-BaseDNN": (0.6849, 0.6413, 0.7788, 0.6460),
        "DMR": (0.6823, 0.6420, 0.7833, 0.6551),
        "MAIL-DMR": (0.6895, 0.6465, 0.7838, 0.6558),
    },
}
"""Table 2, by dataset."""

TABLE_3: dict[str, dict[str, tuple[float, float]]] = {
    "public": {
        "BaseDNN": (0.5862, 0.6271),
        "MAIL-None": (0.5834, 0.6263),
        "MAIL-Single": (0.5844, 0.6267),
        "MAIL-Dual": (0.5897, 0.6272),
        "MAIL-BaseDNN": (0.5934, 0.6271),
    },
    "industrial": {
        "BaseDNN": (0.6771, 0.7788),
        "MAIL-None": (0.6755, 0.7782),
        "MAIL-Single": (0.6764, 0.7784),
        "MAIL-Dual": (0.6802, 0.7788),
        "MAIL-BaseDNN": (0.6849, 0.7788),
    },
}
"""Table 3, by dataset: AUC of new and of old users. (BaseDNN's old users have .7782 in Table 2.)"""

_PUBLIC = "alimama"


def paper_metrics(table: str, dataset: str) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the paper's metrics by method, cohort (new, old) and metric (auc, gauc).

    Args:
        table: ``table2`` or ``table3``.
        dataset: ``public`` or ``industrial``.
    """
    if table == "table3":
        return {
            name: {"new": {"auc": new}, "old": {"auc": old}}
            for name, (new, old) in TABLE_3[dataset].items()
        }
    return {
        name: {"new": {"auc": new, "gauc": new_g}, "old": {"auc": old, "gauc": old_g}}
        for name, (new, new_g, old, old_g) in TABLE_2[dataset].items()
    }


def dataset_of_paper(root: str) -> str | None:
    """Tells which of the paper's datasets lies at ``root``, by the record of ``prepare``.

    Returns:
        None for data of any other origin.
    """
    prepared = Path(root) / "prepared.json"
    if "://" in root or not prepared.exists():
        return None
    inputs = json.loads(prepared.read_text()).get("inputs", {})
    return "public" if inputs.get("dataset") == _PUBLIC else None
