"""Hardware file: the rates of a machine as ``mail-torchrec plan --calibrate`` measured them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mail_torchrec.embeddings.rates.machine_rates import MachineRates
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

VERSION = 2
SUFFIX = ".json"
"""End of a hardware file's name, by which ``--hardware`` tells it from a preset's."""
_REMEDY = "make it anew: mail-torchrec plan --calibrate"


class HardwareFile(Settings):
    """Content of a hardware file."""

    version: Literal[2] = 2
    measured_on: str
    """Host, its cores and its GPU, and the versions of the libraries."""
    preset: str
    """Published numbers of the nearest hardware, which stand for what is not measured."""
    local_world_size: int = Field(ge=1)
    """Ranks of one host."""
    hbm_gib: float = Field(ge=0)
    host_gib: float = Field(gt=0)
    """Memory of the host, divided by its ranks."""
    rates: MachineRates

    def save(self, path: Path) -> None:
        """Writes the file."""
        write_file(path, self.model_dump_json(indent=1) + "\n")


def read_hardware_file(path: Path) -> HardwareFile:
    """Reads a hardware file.

    Raises:
        ValueError: there is no such file, it is no hardware file of this version, or it is damaged.
    """
    try:
        return HardwareFile.model_validate_json(read_document(path, follow_link=True))
    except OSError as error:
        raise ValueError(f"no hardware file at '{path}' ({error.strerror}); {_REMEDY}") from error
    except ValidationError as error:
        raise ValueError(
            f"'{path}' should be a hardware file of version {VERSION}, received "
            f"{first_fault(error)}; {_REMEDY}"
        ) from error
