"""Builds the site of the documents: `make docs`.

The pages link to recipes, examples and each other by their places in the repository, so all of it
is laid out as it is there, and mkdocs makes `site/` of it. A link that leads nowhere ends it.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
KEPT = {".md", ".png", ".svg", ".toml", ".txt", ".py", ".json", ".cff", ""}
MARK = re.compile(r"^(```\w+) [^\n]+$", re.MULTILINE)  # words for our tests behind a language
PARTS = {"docs", "recipes", "examples", "benchmarks", "src", "servers", "tests"}
SEARCH = """\
window.Worker = undefined;
window.postMessage = function (message) { onWorkerMessage({data: message}); };
if (document.getElementById("mkdocs-search-results")) {
  ["lunr.js", "worker.js", "index.js"].forEach(function (name) {
    var script = document.createElement("script");
    script.src = joinUrl(base_url, "search/" + name);
    script.async = false;
    document.head.append(script);
  });
}
"""
INDEX = "loadScripts = function (_, done) { done(); };\nonJSONLoaded.call({responseText: %s});\n"


def main() -> None:
    """Lay the repository out for mkdocs and build."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for name in tracked():
        path = Path(name)
        if path.suffix in KEPT and (len(path.parts) == 1 or path.parts[0] in PARTS):
            (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, PAGES / path)
            if path.suffix == ".md":  # mkdocs would not take a block with a mark for code
                text = (PAGES / path).read_text(encoding="utf-8")
                (PAGES / path).write_text(MARK.sub(r"\1", text), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=ROOT, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    search_in_files(ROOT / "site" / "search")
    print(f"site  {ROOT / 'site' / 'index.html'}")


def search_in_files(folder: Path) -> None:
    """Let the search work in pages opened as files, which may neither fetch nor start workers.

    mkdocs has a way without workers, and gets the index as a script.
    """
    main = (folder / "main.js").read_text(encoding="utf-8")
    main, apart, _ = main.partition("\nif (!window.Worker) {\n")
    if not apart:
        raise SystemExit("mkdocs has another search than the one that search_in_files changes")
    (folder / "main.js").write_text(f"{main}\n{SEARCH}", encoding="utf-8")
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "index.js").write_text(INDEX % json.dumps(index), encoding="utf-8")


def tracked() -> list[str]:
    """Files of the repository, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in found.splitlines() if (ROOT / name).is_file()]


if __name__ == "__main__":
    main()
