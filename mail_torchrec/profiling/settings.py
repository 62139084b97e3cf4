"""Settings of profiled steps."""

from pydantic import Field

from mail_torchrec.settings import Settings


class ProfileSettings(Settings):
    """Steps of a training that are profiled: a trace of each rank, and a table by named span."""

    start: int = Field(default=100, ge=1)
    """First step that is profiled, counted over the whole run; the first steps of a process are
    slower than the others."""
    steps: int = Field(default=5, ge=1, le=100)
    """Number of steps that are profiled. Each adds some megabytes to a trace before compression."""

    @property
    def last(self) -> int:
        """The last step that is profiled."""
        return self.start + self.steps - 1

    def warning(self, num_done: int, num_steps: int) -> str | None:
        """Returns what a run does not profile of these steps; None where it profiles them all.

        Args:
            num_done: steps that were done before this process began.
            num_steps: steps of the whole run.
        """
        window = f"train.profile: steps {self.start} to {self.last}"
        if self.start > num_steps:
            return f"{window} are behind the last of this run, {num_steps}: nothing is profiled"
        if self.last <= num_done:
            return f"{window} were done before this run resumed: nothing is profiled"
        first, last = max(self.start, num_done + 1), min(self.last, num_steps)
        if (first, last) == (self.start, self.last):
            return None
        return f"{window} should all be profiled, this run has steps {first} to {last} of them"
