"""What `tests/gpu/run` remembers and writes: which stages passed on this tree, and the report.

  results.py passed STAGE TREE            ends with 0 if the stage has passed with just this tree
  results.py mark STAGE TREE STATUS SECONDS [FILE]
                                          how it ended; FILE has what it printed, if that belongs into the report
  results.py report COMMAND               RESULTS.md from results.json; prints how each stage ended

All take --cpu where a test of the check itself is meant.
"""

import sys

import stage

ORDER = """kernels serve models failover speed-8b speed-1b speed-w8 speed-w4 peer-transformers peer-llama""".split()
TITLES = {
    "kernels": "Kernels",
    "serve": "Answers beside the CPU's",
    "models": "Models beside transformers",
    "failover": "A worker that dies",
    "speed-8b": "8B-shaped, bf16",
    "speed-1b": "1B-shaped, bf16",
    "speed-w8": "8B-shaped, 8-bit weights",
    "speed-w4": "8B-shaped, 4-bit weights",
    "peer-transformers": "Peer: transformers",
    "peer-llama": "Peer: llama.cpp",
}
SUMMARY = ("Goals", "Volley beside its peers")  # tables of several stages, which stand together at the top


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


def report(record, command, plots=()):
    """Markdown."""
    stages = {name: record["stages"][name] for name in ORDER if name in record["stages"]}
    date = max((told.get("date", "") for told in stages.values()), default="")
    parts = [f"{record['device']}; {date}; `{command}`."]
    ends = [{"stage": name, "ended": ending(stages[name]) if name in stages else "not run"} for name in ORDER]
    parts.append(table(ends))
    for title in SUMMARY:
        if rows := [row for told in stages.values() for row in told.get("tables", {}).get(title, [])]:
            parts += [f"## {title}", table(rows)]
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    for name, told in stages.items():
        parts.append(f"## {TITLES[name]}")
        parts += told.get("notes", [])
        for title, rows in told.get("tables", {}).items():
            if title not in SUMMARY:
                parts += [f"{title}:", table(rows)]
        if text := told.get("text"):
            parts.append(text)
        parts += [f"FAILED:\n\n```\n{failure.strip()}\n```" for failure in told.get("failures", [])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main(arguments):
    cpu = "--cpu" in arguments
    folder = stage.out(cpu)
    path = folder / "results.json"
    record = stage.load(path)
    match [argument for argument in arguments if argument != "--cpu"]:
        case ["passed", name, tree]:
            return 0 if passed(record, name, tree) else 1
        case ["mark", name, tree, status, seconds, *files]:
            text = "\n\n".join(open(file, encoding="utf-8").read() for file in files) if files else None
            record["device"] = record["device"] or stage.device(cpu)
            mark(record, name, tree, int(status), int(seconds), text)
            stage.save(path, record)
        case ["report", command]:
            (folder / "RESULTS.md").write_text(report(record, command, sorted(folder.glob("*.png"))))
            for name in ORDER:
                print(f"{name:18} {ending(record['stages'][name]) if name in record['stages'] else 'not run'}")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
