"""Every command that a page shows parses, and every configuration key that it names exists."""

import re

from mail_torchrec.cli import main
from tests.support.page_commands import faults, is_known_key
from tests.support.pages import pages

_KEY = re.compile(r"((?:data|schema|model|sharding|train|checkpoint)\.[a-z_.]+[a-z_])(=.*)?")
_FILES = (".py", ".md", ".yaml", ".json", ".jsonl", ".npz", ".onnx")


def test_every_command_in_a_shell_block_parses() -> None:
    lines = [(page.name, line) for page in pages() for line in page.shell_lines]
    assert len(lines) > 50
    assert [f"{name}: {fault}" for name, line in lines for fault in faults(line)] == []


def test_commands_that_do_not_parse_are_found() -> None:
    known = "mail-torchrec train --config launch/configs/synthetic.yaml"
    for line in (
        "mail-torchrec trian",
        "mail-torchrec train --configs mine.yaml",
        "mail-torchrec train --config launch/configs/other.yaml",
        "mail-torchrec train --config mine.yaml train.epoch=1",
        "torchrun --nproc-per-node 2 -m mail_torchrec train --config mine.yaml --rundir runs/a",
        "torchx run -s slurm components/mail.py:train --config mine.yaml --run_dir runs/a --k 1x2",
        "torchx run -s slurm components/mail.py:fit --config mine.yaml",
        "python tools/soak.py --no-such-option",
        "./launch/start.sh",
        f"{known} --run-dir runs/a && mail-torchrec evaluate --run runs/a",
    ):
        assert faults(line), line
    assert faults(f"OMP_NUM_THREADS=1 {known} --run-dir runs/a train.epochs=2 > log &") == []


def test_every_command_in_running_text_has_its_name_and_options() -> None:
    wrong = []
    for page in pages():
        for span in page.code_spans:
            words = re.sub(r" --(traceback|log-level \w+)", "", span).split()
            if words[0] != "mail-torchrec" or len(words) < 2 or words[1].isupper():
                continue
            command = main.commands.get(words[1])
            options = {
                option for param in (command.params if command else ()) for option in param.opts
            }
            given = {word.split("=")[0] for word in words[2:] if word.startswith("--")} - {"--help"}
            if (command is None and words[1] != "--help") or given - options:
                wrong.append(f"{page.name}: {span}")
    assert wrong == []


def test_every_configuration_key_in_running_text_exists() -> None:
    wrong = []
    for page in pages():
        for span in page.code_spans:
            match = _KEY.fullmatch(span)
            if match and not match[1].endswith(_FILES) and not is_known_key(match[1]):
                wrong.append(f"{page.name}: {span}")
    assert wrong == []
