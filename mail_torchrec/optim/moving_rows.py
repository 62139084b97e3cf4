"""Rows of tables that an optimizer moves in steps that do not look them up.

Torch's Adam does: a row goes on by its moments. Fused optimizers and the others update looked-up
rows alone.
"""

import torch

from mail_torchrec.embeddings.touched.rows import TouchedRows
from mail_torchrec.optim.assignment import TABLES
from mail_torchrec.optim.groups import OptimizerGroups


@torch.no_grad()
def mark_moving_rows(optimizer: OptimizerGroups, touched: TouchedRows) -> None:
    """Marks the rows that the next step moves even if it does not look them up.

    Args:
        optimizer: of a run, with the state that its next step begins with.
        touched: rows of its tables.
    """
    group = optimizer.groups.get(TABLES)
    if group is None:
        return
    decays = any(part.get("weight_decay") for part in group.optimizer.param_groups)
    for name in group.trained:
        state, table = group.state.get(name, {}), touched.table_names[name]
        moments = [state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state]
        if decays:
            touched.mark_all(table)
        elif moments:
            moves_R = torch.stack([(moment != 0).any(dim=1) for moment in moments]).any(dim=0)
            touched.mark(table, moves_R.nonzero().squeeze(1).numpy(force=True))
