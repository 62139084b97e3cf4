"""Ids and users -> vectors, by the exported graph."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mail_torchrec.data.ids.vocabulary import FIRST_ROW, UNKNOWN_ROW, Vocabulary
from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.inference.manifest import read_golden
from mail_torchrec.inference.requests import USER_OF_CANDIDATE
from mail_torchrec.inference.scorer import Arrays, Scorer
from mail_torchrec.inference.subgraph import PartOfGraph


class Embedder:
    """One sequence's vectors, whose product is the tower's idea of how much the user likes the item.

    Args:
        folder: what ``mail-torchrec export`` wrote.
        sequence: the schema's column; None takes the only one that has vectors.
        threads: of ONNX Runtime; None leaves it to the runtime.

    Raises:
        ValueError: the model has no such vectors, or ones that depend on more than the user and the
            item's id.
    """

    def __init__(
        self, folder: Path, sequence: str | None = None, threads: int | None = None
    ) -> None:
        self._scorer = Scorer(folder, threads=threads)
        self.manifest, self.encode = self._scorer.manifest, self._scorer.encode
        self.schema, self.version = self.manifest.schema_, self.manifest.version
        self.sequence = self._chosen(sequence)
        self._user, self._item = f"{self.sequence}.user", f"{self.sequence}.item"
        outputs = {output.name: output for output in self.manifest.outputs}
        if outputs[self._user].shape[0] != "users":
            raise ValueError(
                f"'{folder}': a new user's vector depends on the candidate, so there is none to "
                "be kept (model.zero_shot.input_fields=all_fields); "
                "train with user_attributes"
            )
        dim = outputs[self._item].shape[1]
        assert isinstance(dim, int)
        self.dim = dim
        self.item_column = self.schema.target_of(self.sequence)
        self._items = self.encode.encoders.tables[self.schema.table_of(self.item_column)]
        self._of_item, self._of_user = (
            PartOfGraph(folder, name, threads) for name in (self._item, self._user)
        )
        lasting = {
            self.schema.file_column(name)
            for name in self.schema.names(Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
        }
        self._context = {
            self.schema.file_column(name) for name in self.schema.names(Group.CONTEXT)
        } - lasting
        self._check()

    def vocabulary(self) -> tuple[pa.Array, Ints]:
        """All items that the model knows, in the order of their table rows: raw ids, and these.

        Raises:
            ValueError: they are hashed.
        """
        if not isinstance(self._items, Vocabulary):
            raise ValueError(
                f"the ids of '{self.item_column}' are hashed, so the model does not know them: "
                "name a file of them by --items"
            )
        return self._items.values, np.arange(FIRST_ROW, self._items.num_rows)

    def known(self, ids: pa.Array) -> tuple[pa.Array, Ints]:
        """Those of the raw ids that the model knows (all where they are hashed), in the order of their table rows, and these.

        In that order a large mapped table is read as a file is; hashed rows as they come would
        touch a page each.

        Raises:
            ValueError: ids of another type than in training.
        """
        rows_N = self._items.encode(ids)
        order_N = np.argsort(rows_N, kind="stable")
        order_N = order_N[rows_N[order_N] != UNKNOWN_ROW]
        return ids.take(pa.array(order_N)), rows_N[order_N]

    def items(self, rows_N: Ints) -> Floats:
        """Vectors [N, D] of table rows."""
        inputs = self._nothing(num_users=1, num_candidates=len(rows_N)) | {self.item_column: rows_N}
        found: Floats = self._of_item(inputs)
        return found

    def users(self, table: pa.Table, what: str) -> Floats:
        """Vectors [U, D] of users, a row each with the files' columns; new ones by the zero-shot tower, if the model has one.

        Args:
            table: attributes and histories; the moment's context has no part in it.
            what: the table, for messages.

        Raises:
            ValueError: a column is missing, or a value cannot be scored.
        """
        return self._of_users(
            self.encode.users(
                table.drop_columns([name for name in table.column_names if name in self._context]),
                what,
            )
        )

    def _of_users(self, inputs: Arrays) -> Floats:
        num_users = len(next(iter(inputs.values())))
        found: Floats = self._of_user(self._nothing(num_users, num_candidates=1) | inputs)
        return found

    def _nothing(self, num_users: int, num_candidates: int) -> Arrays:
        """Inputs of users and candidates of which nothing is known: nulls, encoded."""
        sizes = {"users": num_users, "candidates": num_candidates}
        inputs: Arrays = {}
        for spec in self.manifest.inputs:
            shape = [sizes.get(size, 1) if isinstance(size, str) else size for size in spec.shape]
            one_id = spec.dtype == "int64" and len(shape) == 1 and spec.name in self.schema.columns
            inputs[spec.name] = np.full(
                shape, self.manifest.missing_row if one_id else 0, spec.dtype
            )
        assert not inputs[USER_OF_CANDIDATE].any()
        return inputs

    def _chosen(self, wanted: str | None) -> str:
        names = [
            output.name.removesuffix(".user")
            for output in self.manifest.outputs
            if output.name.endswith(".user")
        ]
        if not names:
            raise ValueError(
                f"tower '{self.manifest.tower}' has no user and item vectors; 'dmr' has, and a "
                "tower of yours that returns them in "
                "RankingOutput.vectors"
            )
        if wanted is not None and wanted not in names:
            raise ValueError(f"--sequence should be one of {', '.join(names)}, received '{wanted}'")
        if wanted is None and len(names) > 1:
            raise ValueError(f"there are vectors of {', '.join(names)}: choose one by --sequence")
        return wanted or names[0]

    def _check(self) -> None:
        """Holds vectors made of ids and users alone against those of whole requests."""
        requests = [request for request, _ in read_golden(self._scorer.folder)]
        whole = self.encode(requests)
        expected = self._scorer.run(whole, [self._user, self._item])
        rows_N = whole[self.item_column]
        context = self.schema.names(Group.CONTEXT)
        of_users = {
            spec.name: whole[spec.name]
            for spec in self.manifest.inputs
            if spec.shape[0] == "users" and spec.name.removesuffix(".length") not in context
        }
        for kind, found, other in (
            ("item", self.items(rows_N), "the item's id"),
            ("user", self._of_users(of_users), "attributes and histories"),
        ):
            if not np.allclose(found, expected[f"{self.sequence}.{kind}"], rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"tower '{self.manifest.tower}': its {kind} vectors depend on more than "
                    f"{other}, as the golden requests tell, so they "
                    "cannot be computed beforehand"
                )
