"""What would make a point fit: each remedy is planned anew, none is a guess."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mail_torchrec.config import Config
from mail_torchrec.embeddings.planner import KernelName
from mail_torchrec.planning.estimate import Answer, answer
from mail_torchrec.planning.scenarios import Case
from mail_torchrec.train.dense_cost import DenseCost

_MOST_RANKS = 4096


@dataclass(frozen=True)
class Remedy:
    """A change, and what planning with it said."""

    change: str
    """As the command line takes it."""
    answer: Answer

    def content(self) -> dict[str, Any]:
        """For JSON."""
        found = self.answer
        return {
            "change": self.change,
            "fits": found.fits,
            "lacks": found.lacks,
            "step_ms": found.step.total,
            "peak": found.peak_memory,
        }

    def sentence(self) -> str:
        """For people."""
        if not self.answer.fits:
            return f"{self.change}: does not help, it still lacks {self.answer.lacks}"
        return (
            f"{self.change}: fits, {self.answer.peak_memory / 2**30:.1f} GiB a rank, "
            f"{self.answer.step.total:.1f} ms a step"
        )


def remedies(missed: Answer) -> list[Remedy]:
    """Everything that could help a point that does not fit, what helps first, fastest first."""
    tried = []
    for change, case in _changed(missed.case):
        found = answer(case, _dense(missed.dense, case.config))
        if (
            "sharding.kernels" not in change or not found.fits or _off_gpu(found)
        ):  # else it is the same change without the kernel
            tried.append(Remedy(change, found))
    tried += _more_ranks(missed)
    return sorted(tried, key=lambda remedy: (not remedy.answer.fits, remedy.answer.step.total))


def _off_gpu(found: Answer) -> bool:
    return any(choice.kernel != "fused" for choice, _ in found.layout.chosen.values())


def _dense(cost: DenseCost, config: Config) -> DenseCost:
    """The towers' cost, their settings changed at most in whether the MMD is over all ranks."""
    return cost if config.model.mmd_over_all_ranks else replace(cost, code_dim=0)


def _changed(case: Case) -> Iterator[tuple[str, Case]]:
    """The changes that mean something here, one at a time, then the two strongest together."""
    config = case.config
    for change, other in _settings(case):
        yield change, replace(case, config=other)
    if config.train.batch_size >= 4:
        half = config.train.batch_size // 2
        yield (
            f"train.batch_size={half}",
            replace(case, config=_with(config, "train", batch_size=half)),
        )
    if config.model.mmd_over_all_ranks and config.model.zero_shot is not None and case.ranks > 1:
        yield (
            "model.mmd_over_all_ranks=false",
            replace(case, config=_with(config, "model", mmd_over_all_ranks=False)),
        )


def _settings(case: Case) -> Iterator[tuple[str, Config]]:
    config = case.config
    sharding, tables = config.sharding, config.train.tables
    if "row_wise" not in sharding.types or sharding.tables:
        types = list(dict.fromkeys([*sharding.types, "row_wise"]))
        yield (
            f"sharding.types=[{', '.join(types)}] sharding.tables={{}}",
            _with(config, "sharding", types=types, tables={}),
        )
    lean = config
    if tables.name not in ("sgd", "rowwise_adagrad"):
        lean = _with(config, "train", tables=tables.model_copy(update={"name": "rowwise_adagrad"}))
        yield "train.tables.name=rowwise_adagrad", lean
    if case.machine.device == "cuda":
        kernels: tuple[KernelName, ...] = ("fused_uvm_caching", "fused_uvm", "key_value")
        for kernel in kernels:
            if kernel in sharding.kernels:
                continue
            allowed = list(dict.fromkeys([*sharding.kernels, kernel]))
            text = f"sharding.kernels=[{', '.join(allowed)}]"
            if kernel != "key_value":
                yield text, _with(config, "sharding", kernels=allowed, table_kernels={})
            if kernel != "fused_uvm" and lean is not config:
                yield (
                    f"train.tables.name=rowwise_adagrad {text}",
                    _with(lean, "sharding", kernels=allowed, table_kernels={}),
                )
            elif kernel == "key_value" and tables.name == "rowwise_adagrad":
                yield text, _with(config, "sharding", kernels=allowed, table_kernels={})


def _with(config: Config, section: str, **changes: Any) -> Config:
    """The configuration with some values of a section changed."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def _more_ranks(missed: Answer) -> list[Remedy]:
    """The fewest doublings of the ranks that fit; where the MMD over all of them is in the way, without it."""
    own = _with(missed.case.config, "model", mmd_over_all_ranks=False)
    for config, text in ((missed.case.config, ""), (own, " model.mmd_over_all_ranks=false")):
        dense, ranks = _dense(missed.dense, config), missed.case.ranks * 2
        while ranks <= min(16 * missed.case.ranks, _MOST_RANKS):
            if sum(dense.memory(config.train.batch_size, ranks).values()) > missed.capacity:
                break
            found = answer(replace(missed.case, config=config, ranks=ranks), dense)
            if found.fits:
                return [Remedy(f"--ranks {ranks}{text}", found)]
            ranks *= 2
        if not missed.dense.code_dim:
            break
    return []
