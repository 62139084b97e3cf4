"""User and item vectors, computed by subgraphs of the exported graph.

``N`` items, ``U`` users, ``D`` dimensions.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mail_torchrec.data.parquet.arrow import Floats, Ints
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import USER_OF_CANDIDATE
from mail_torchrec.inference.scorer import Arrays, Scorer
from mail_torchrec.inference.subgraph import Subgraph
from mail_torchrec.utils.output_spec import OutputSpec, Role


class Embedder:
    """Computes the vectors of one sequence, whose inner product is the tower's relevance.

    Args:
        folder: folder that ``mail-torchrec export`` wrote.
        sequence: column of the behaviour sequence; None takes the only one that has vectors.
        threads: number of ONNX Runtime's threads; None leaves it to the runtime.

    Raises:
        ValueError: the model has no such vectors, or they depend on more than the user or the
            item's id.
    """

    def __init__(
        self, folder: Path, sequence: str | None = None, threads: int | None = None
    ) -> None:
        self._scorer = Scorer(folder, threads=threads)
        self.manifest, self.encode = self._scorer.manifest, self._scorer.encode
        self.schema, self.version = self.manifest.schema_, self.manifest.version
        self.sequence = _choose_sequence(self.manifest, sequence)
        self._user_output = self._output("user_vector")
        self._item_output = self._output("item_vector")
        if self._user_output.axis != "users":
            raise ValueError(
                f"'{folder}': a new user's vector depends on the candidate, so there is none to "
                "be kept (model.zero_shot.input_fields=all_fields); train with user_attributes"
            )
        [self.dim] = self._item_output.size
        self.item_column = self.schema.target_of(self.schema.match_column(self.sequence))
        if self.item_column in self.schema.bucketed:
            raise ValueError(
                f"the match loss of '{self.sequence}' is about '{self.item_column}', whose numbers "
                "are in buckets, so no item has a vector of its own; train with a 'match' of ids"
            )
        self._id_encoder = self.encode.encoders.tables[self.schema.table_of(self.item_column)]
        self._item_graph = Subgraph(folder, self._item_output.name, threads)
        self._user_graph = Subgraph(folder, self._user_output.name, threads)
        self._check()

    def vocabulary(self) -> tuple[pa.Array, Ints]:
        """Returns the raw ids of all items that the model knows, and their table rows [N].

        Raises:
            ValueError: the ids are hashed.
        """
        if (ids := self._id_encoder.values) is None:
            raise ValueError(
                f"the ids of '{self.item_column}' are hashed, so the model does not know them: "
                "name a file of them by --items"
            )
        return ids, self._id_encoder.rows_V

    def known_items(self, ids: pa.Array) -> tuple[pa.Array, Ints]:
        """Selects the raw ids that the model knows (hashed ids: all), with their table rows [N].

        They come in the order of the rows, so that a large mapped table is read from start to end;
        hashed rows as they come would touch a page of memory each.

        Args:
            ids: raw ids.

        Raises:
            ValueError: ids of another type than in training.
        """
        rows_N = self._id_encoder.encode(ids)
        order_N = np.argsort(rows_N, kind="stable")
        order_N = order_N[~self._id_encoder.is_unknown(rows_N[order_N])]
        return ids.take(pa.array(order_N)), rows_N[order_N]

    def items(self, rows_N: Ints) -> Floats:
        """Computes the vectors [N, D] of item table rows."""
        missing = self._missing_values(num_users=1, num_candidates=len(rows_N))
        return self._item_graph(missing | {self.item_column: rows_N})

    def users(self, table: pa.Table, source_name: str) -> Floats:
        """Computes the vectors [U, D] of users, one a row; new ones by the zero-shot tower.

        Args:
            table: attributes and histories by the files' columns; context is not used.
            source_name: name of the table in error messages.

        Raises:
            ValueError: a column is missing, or a value cannot be scored.
        """
        unused = [name for name in table.column_names if name in self._context_columns()]
        return self._encoded_users(self.encode.users(table.drop_columns(unused), source_name))

    def _output(self, role: Role) -> OutputSpec:
        """Finds the sequence's output of a role."""
        [spec] = [spec for spec in self.manifest.outputs_of(role) if spec.column == self.sequence]
        return spec

    def _encoded_users(self, inputs: Arrays) -> Floats:
        num_users = len(next(iter(inputs.values())))
        return self._user_graph(self._missing_values(num_users, num_candidates=1) | inputs)

    def _context_columns(self) -> set[str]:
        """Collects the file columns that hold context and nothing else."""
        context = self.schema.names(Group.CONTEXT)
        user = self.schema.names(Group.ATTRIBUTE, Group.BEHAVIOUR, Group.NEW_USER)
        of_context, of_user = (
            {raw for name in names for raw in self.schema.raw_columns(name)}
            for names in (context, user)
        )
        return of_context - of_user

    def _missing_values(self, num_users: int, num_candidates: int) -> Arrays:
        """Builds inputs of users and candidates whose every value is null."""
        sizes = {"users": num_users, "candidates": num_candidates}
        inputs: Arrays = {}
        for spec in self.manifest.inputs:
            shape = [sizes.get(size, 1) if isinstance(size, str) else size for size in spec.shape]
            is_id = spec.dtype == "int64" and len(shape) == 1 and spec.name in self.schema.columns
            fill = self.manifest.missing_row if is_id else 0
            inputs[spec.name] = np.full(shape, fill, spec.dtype)
        assert not inputs[USER_OF_CANDIDATE].any()
        return inputs

    def _check(self) -> None:
        """Compares vectors of ids and users alone with those of whole golden requests."""
        requests = [request for request, _ in read_golden(self._scorer.folder)]
        encoded = self.encode(requests)
        names = [self._item_output.name, self._user_output.name]
        expected = self._scorer.run(encoded, names)
        context = self.schema.names(Group.CONTEXT)
        users = {
            spec.name: encoded[spec.name]
            for spec in self.manifest.inputs
            if spec.shape[0] == "users" and (spec.length_of or spec.name) not in context
        }
        items_ND = self.items(encoded[self.item_column])
        self._check_equal("item", items_ND, expected[names[0]], "the item's id")
        users_UD = self._encoded_users(users)
        self._check_equal("user", users_UD, expected[names[1]], "attributes and histories")

    def _check_equal(self, kind: str, found: Floats, expected: Floats, inputs: str) -> None:
        if not np.allclose(found, expected, rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"tower '{self.manifest.tower}': its {kind} vectors depend on more than {inputs}, "
                "as the golden requests tell, so they cannot be computed beforehand"
            )


def _choose_sequence(manifest: ArtifactManifest, sequence: str | None) -> str:
    """Chooses the behaviour sequence whose vectors are computed."""
    names = [spec.column for spec in manifest.outputs_of("item_vector") if spec.column is not None]
    if not names:
        raise ValueError(
            f"tower '{manifest.tower}' has no user and item vectors; 'dmr' has, and a tower of "
            "yours that declares them in output_specs()"
        )
    if sequence is not None and sequence not in names:
        raise ValueError(f"--sequence should be one of {', '.join(names)}, received '{sequence}'")
    if sequence is None and len(names) > 1:
        raise ValueError(f"there are vectors of {', '.join(names)}: choose one by --sequence")
    return sequence or names[0]
