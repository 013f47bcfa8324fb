"""Links between the pages lead to files and headings that are there, as they lie in the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for folder in (".", "docs", "docs/api", "benchmarks", "experiments") for path in (ROOT / folder).glob("*.md")
)
#: Made by `make docs` (docs/make_methods.py), and kept nowhere.
GENERATED = {ROOT / "docs" / "methods.md"}
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`|^ {4,}\S.*?$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+(?:\([^()\s]*\))?)\)|^\[[^\]]+\]: +(\S+)", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What headings are called in an address, as Markdown's table of contents and GitHub make it."""
    found = set()
    for heading in re.findall(
        r"^#+ +(.+?)(?: *#+)?$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
        found |= {re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)}
    return found | set(re.findall(r'(?:id|name)="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for pair in _LINK.findall(_CODE.sub("", text)):
        link = pair[0] or pair[1]
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if target in GENERATED:
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), link
