#!/usr/bin/env python3
"""Checks that links in the project's Markdown files lead to a file, and to a heading in it.

    scripts/check_links.py

Links to other sites are not followed. Exit status 1 if a link leads nowhere.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"")


def text_only(markdown):
    """Without code blocks and code in lines, where brackets mean something else."""
    markdown = re.sub(r"^( *)(```|~~~).*?^\1\2", "", markdown, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "``", markdown)


def anchors(markdown):
    """As code hosts make them: lower case, no punctuation, hyphens for spaces, -1 for the second."""
    found = set()
    without_blocks = re.sub(r"^( *)(```|~~~).*?^\1\2", "", markdown, flags=re.M | re.S)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (name := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def main():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout
    bad = links = 0
    for name in listed.splitlines():
        file = ROOT / name
        markdown = file.read_text()
        for match in LINK.finditer(text_only(markdown)):
            link = match[1] or match[2]
            if re.match(r"[a-z]+:", link):
                continue
            links += 1
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            if not target.exists():
                problem = f"there is no {path}"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
                problem = f"no heading #{anchor}"
            else:
                continue
            bad += 1
            print(f"{name}: ({link}): {problem}")
    print(f"{links} links, {bad} of them lead nowhere")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
