"""A stored part is never in memory twice."""

import subprocess
import sys
from pathlib import Path

import torch

from mail_torchrec.checkpoint.storage import write_tensors

SIZE = (400_000, 64)  # 98 MiB

READ = """
import resource, sys
from pathlib import Path
import torch
from mail_torchrec.export.stored_weights import StoredWeights
from mail_torchrec.export.table_files import TableFile

stored = StoredWeights(Path(sys.argv[1]))
file = TableFile(Path(sys.argv[2]), "float32", (399_000, 62))
file.create()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored.stream("table", file.write_shard)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_streaming_a_table_needs_its_stored_part_and_little_more(tmp_path: Path) -> None:
    table = torch.arange(SIZE[0] * SIZE[1], dtype=torch.float32).view(SIZE)
    write_tensors({"table": table}, tmp_path / "saved")
    command = [sys.executable, "-c", READ, str(tmp_path / "saved"), str(tmp_path / "raw")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.9 * table.nbytes
    found = torch.from_file(str(tmp_path / "raw"), size=399_000 * 62).view(399_000, 62)
    assert found.equal(table[:399_000, :62])
