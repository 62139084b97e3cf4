"""Tracker for MLflow: a run's settings, curves, metrics and files on a tracking server."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mail_torchrec.settings import Settings
from mail_torchrec.trackers.tracker import Outcome, RunDescription, TrackedValue, Tracker
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
# Limits of MLflow's own API for one request, and for the length of a parameter.
_VALUES_A_REQUEST, _PARAMETERS_A_REQUEST, _MAX_PARAMETER = 1000, 100, 6000


class _MlflowOptions(Settings):
    """Options of the tracker ``mlflow``."""

    uri: str | None = None
    """Address of the tracking server; None takes MLFLOW_TRACKING_URI."""
    experiment: str = "mail-torchrec"
    tags: dict[str, str] = {}
    """Tags of the run beside ours."""
    files: bool = True
    """Upload the run's small files."""


class MlflowTracker(Tracker):
    """Tells an MLflow tracking server of one run.

    User and password, or a token, come from MLflow's own environment variables
    (``MLFLOW_TRACKING_USERNAME`` and the like).

    Args:
        options: fields of :class:`_MlflowOptions`.

    Raises:
        ValueError: an option does not fit, no server is named, or MLflow's client is not installed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            self._options = _MlflowOptions.model_validate(dict(options))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            known = ", ".join(_MlflowOptions.model_fields)
            raise ValueError(f"tracker 'mlflow': {faults}; its options are: {known}") from None
        uri = self._options.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ValueError(
                "tracker 'mlflow' should be given a server, received none; set its option uri, or "
                "MLFLOW_TRACKING_URI in the environment"
            )
        self._client = _client(uri)
        self._run_id = ""

    def start(self, run: RunDescription, run_id: str | None) -> str:
        """Creates the run in its experiment, or goes on with it."""
        if run_id is not None and self._goes_on(run_id):
            self._run_id = run_id
            return run_id
        experiment = self._experiment_id()
        tags = {"run_dir": str(run.path)} | self._options.tags
        tags |= {f"version.{package}": version for package, version in run.versions.items()}
        created = self._client.create_run(experiment, tags=tags, run_name=run.name)
        self._run_id = created.info.run_id
        self._log_settings(run.settings)
        return self._run_id

    def log(self, values: Sequence[TrackedValue]) -> None:
        """Records numbers as MLflow's metrics."""
        from mlflow.entities import Metric

        for start in range(0, len(values), _VALUES_A_REQUEST):
            some = values[start : start + _VALUES_A_REQUEST]
            metrics = [
                Metric(_allowed(one.name), one.value, one.milliseconds, one.step) for one in some
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, outcome: Outcome, files: Sequence[Path]) -> None:
        """Uploads the files, and sets the run's status."""
        if self._options.files:
            for path in files:
                self._client.log_artifact(self._run_id, str(path))
        self._client.set_terminated(self._run_id, _STATUS[outcome])

    def _goes_on(self, run_id: str) -> bool:
        """Sets the run's status back, unless the server does not know it any more."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("tracker 'mlflow': the server has no run '%s' now; a new one", run_id)
            return False
        return True

    def _experiment_id(self) -> str:
        """Finds the experiment, or creates it; several runs may do so at once."""
        from mlflow.exceptions import MlflowException

        name = self._options.experiment
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _log_settings(self, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(_allowed(key), value[:_MAX_PARAMETER]) for key, value in settings.items()]
        for start in range(0, len(params), _PARAMETERS_A_REQUEST):
            self._client.log_batch(
                self._run_id, params=params[start : start + _PARAMETERS_A_REQUEST]
            )


def _allowed(name: str) -> str:
    """Replaces what MLflow does not allow in a name."""
    return re.sub(r"[^\w.\-: /]", "_", name)


def _client(uri: str) -> Any:
    """Makes MLflow's client.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ValueError(
            f"tracker 'mlflow' needs MLflow's client ({error}); pip install -e '.[mlflow]'"
        ) from error
    # Standard output is for the results of a command.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return MlflowClient(tracking_uri=uri)
