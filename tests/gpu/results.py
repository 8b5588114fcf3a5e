"""What `tests/gpu/run` remembers and writes: which stages passed on this tree, and the report.

  results.py passed STAGE TREE            ends with 0 if the stage has passed with just this tree
  results.py begin STAGE                  forgets what it left before
  results.py mark STAGE TREE STATUS SECONDS [FILE]
                                          how it ended; FILE has what it printed, if that belongs into the report
  results.py report COMMAND               RESULTS.md from results.json; prints how each stage ended

All take --cpu where a test of the check itself is meant.
"""

import sys

import stage

TITLES = {
    "kernels": "Kernels",
    "serve": "Answers beside the CPU's",
    "models": "Models beside transformers",
    "failover": "A worker that dies",
    "speed-8b": "8B-shaped, bf16",
    "speed-1b": "1B-shaped, bf16",
    "speed-1b-plain": "1B-shaped, bf16, --no-cuda-graphs",
    "speed-w8": "8B-shaped, 8-bit weights",
    "speed-w4": "8B-shaped, 4-bit weights",
    "speed-deterministic": "8B-shaped, bf16, --deterministic",
    "peer-transformers": "Peer: transformers",
    "peer-llama": "Peer: llama.cpp, bf16",
    "peer-llama-w8": "Peer: llama.cpp, 8-bit weights",
    "peer-llama-w4": "Peer: llama.cpp, 4-bit weights",
}
ORDER = list(TITLES)
# The stages whose tables stand together, and which of them first.
TOGETHER = ("speed-", "peer-")
FIRST = ("Goals", "Volley beside its peers", "Loads")


def passed(record, name, tree):
    told = record["stages"].get(name, {})
    return told.get("status") == 0 and told.get("tree") == tree


def mark(record, name, tree, status, seconds, text=None):
    told = record["stages"].setdefault(name, {})
    told |= {"tree": tree, "status": status, "seconds": seconds}
    if text is not None:
        told["text"] = text


def ending(told):
    match told.get("status"):
        case 0:
            return f"passed in {told['seconds']} s"
        case stage.LEFT_OUT:
            return "left out"
        case 124 | 137:
            return f"stopped after {told['seconds']} s: its time was up"
        case None:
            return "not run to its end"
        case status:
            return f"FAILED ({status}) after {told['seconds']} s"


def table(rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(stage.shown(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def merged(stages):
    """The tables of all of these stages by title, in the report's order."""
    tables = {}
    for told in stages:
        for title, rows in told.get("tables", {}).items():
            tables.setdefault(title, []).extend(rows)
    place = {
        title: next((n for n, start in enumerate(FIRST) if title.startswith(start)), len(FIRST)) for title in tables
    }
    return dict(sorted(tables.items(), key=lambda item: place[item[0]]))


def report(record, command, plots=()):
    """Markdown."""
    stages = {name: record["stages"][name] for name in ORDER if name in record["stages"]}
    date = max((told.get("date", "") for told in stages.values()), default="")
    ends = [{"stage": name, "ended": ending(stages[name]) if name in stages else "not run"} for name in ORDER]
    parts = ["# On real GPUs", f"{record['device']}; {date}; `{command}`.", table(ends)]
    for title, rows in merged(told for name, told in stages.items() if name.startswith(TOGETHER)).items():
        parts += [f"## {title}", table(rows)]
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    for name, told in stages.items():
        own = list(told.get("notes", []))
        if not name.startswith(TOGETHER):
            own += [part for title, rows in told.get("tables", {}).items() for part in (f"{title}:", table(rows))]
        own += [told["text"]] if told.get("text") else []
        own += [f"FAILED:\n\n```\n{failure.strip()}\n```" for failure in told.get("failures", [])]
        parts += [f"## {TITLES[name]}", *own] if own else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main(arguments):
    cpu = "--cpu" in arguments
    folder = stage.out(cpu)
    path = folder / "results.json"
    record = stage.load(path)
    match [argument for argument in arguments if argument != "--cpu"]:
        case ["passed", name, tree]:
            return 0 if passed(record, name, tree) else 1
        case ["begin", name]:
            record["stages"].pop(name, None)
            stage.save(path, record)
        case ["mark", name, tree, status, seconds, *files]:
            text = "\n\n".join(open(file, encoding="utf-8").read() for file in files) if files else None
            record["device"] = record["device"] or stage.device(cpu)
            mark(record, name, tree, int(status), int(seconds), text)
            stage.save(path, record)
        case ["report", command]:
            (folder / "RESULTS.md").write_text(report(record, command, sorted(folder.glob("*.png"))))
            for name in ORDER:
                print(f"{name:20} {ending(record['stages'][name]) if name in record['stages'] else 'not run'}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
