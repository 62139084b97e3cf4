"""Links between pages lead somewhere, and pages name the files beside them."""

import re
from pathlib import Path

from tests.support.pages import Page, pages
from tools.update_pages import ROOT

PACKAGE = ROOT / "mail_torchrec"


def faults(page: Page) -> list[str]:
    found = []
    anchors = {other.path.resolve(): other.anchors for other in (*pages(), page)}
    for link in page.links:
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path.resolve()
        if target and not (path.exists() and path.is_relative_to(ROOT.resolve())):
            found.append(f"{page.name}: {link}: no such file")
        elif anchor and anchor not in anchors.get(path, set()):
            found.append(f"{page.name}: {link}: no such heading")
    return found


def test_every_link_leads_to_a_file_of_the_repository_and_to_a_heading_of_it() -> None:
    assert sum(len(page.links) for page in pages()) > 50
    assert [fault for page in pages() for fault in faults(page)] == []


def test_links_that_lead_nowhere_are_found() -> None:
    text = (
        "# A b, c: `d`\n[a](#a-b-c-d) [b](#no) [c](nowhere.md) ![p](README.md#no) [u](https://x.y)"
    )
    page = Page(ROOT / "other.md", text)
    assert page.anchors == {"a-b-c-d"}
    assert faults(page) == [
        "other.md: #no: no such heading",
        "other.md: nowhere.md: no such file",
        "other.md: README.md#no: no such heading",
    ]


def folders() -> list[Path]:
    """The folders of the package that hold modules."""
    found = {path.parent for path in PACKAGE.rglob("*.py")}
    return sorted(folder for folder in found if "__pycache__" not in folder.parts)


def test_every_folder_of_the_package_has_a_page() -> None:
    assert [str(folder) for folder in folders() if not (folder / "README.md").exists()] == []


def test_every_file_is_named_on_the_page_of_its_folder() -> None:
    beside = {
        path: folder / "README.md"
        for folder in folders()
        for path in [*folder.glob("*.py"), *(folder / "presets").glob("*.yaml")]
        if path.name not in ("__init__.py", "__main__.py")
    }
    for name, pattern in (
        ("tools", "*.py"), ("tools", "benchmark/**/*.py"), ("tools", "gpu/**/*.py"),
        ("tools", "gpu/*.sh"), ("tools/results", "*.md"),
        ("launch", "*.sh"), ("launch", "*/*.sh"), ("launch", "*/*.yaml"), ("components", "*.py"),
    ):  # fmt: skip
        for path in (ROOT / name).glob(pattern):
            if path.name not in ("__init__.py", "README.md"):
                beside[path] = ROOT / name / "README.md"
    assert len(beside) > 200
    missing = []
    for path, page in beside.items():
        text = page.read_text() if page.exists() else ""
        if not re.search(rf"(?<![\w]){re.escape(path.name)}", text):
            missing.append(f"{page.relative_to(ROOT)} does not name {path.name}")
    assert missing == []


def test_each_journey_opens_at_most_four_files() -> None:
    [text] = [page.text for page in pages() if page.name == "tests/README.md"]
    section = text.split("## To do X, open these files in this order")[1].split("\n## ")[0]
    steps = {
        journey.splitlines()[0]: len(re.findall(r"^\d\. ", journey, re.MULTILINE))
        for journey in section.split("### ")[1:]
    }
    assert len(steps) == 5
    assert [journey for journey, files in steps.items() if not 1 <= files <= 4] == []
