"""Plots of what the stages found, beside their results; nothing where matplotlib is not there.

plots.py [--cpu]
"""

import sys

import loads
import results
import stage


def tables(record, title):
    stages = [record["stages"].get(name, {}) for name in results.ORDER]
    return [row for told in stages for row in told.get("tables", {}).get(title, [])]


def throughput(plot, rows):
    """Tokens a second over the number of streams: a line for each server and model."""
    figure, axes = plot.subplots(figsize=(8, 5))
    for label in dict.fromkeys((row["server"], row["model"]) for row in rows):
        points = [(row["streams"], row["tok/s"]) for row in rows if (row["server"], row["model"]) == label]
        style = "-o" if label[0] == "Volley" else "--x"
        axes.plot(*zip(*sorted(points)), style, label=", ".join(label))
    axes.set(xscale="log", yscale="log", xlabel="streams", ylabel="generated tokens a second")
    axes.set_xticks(sorted({row["streams"] for row in rows}), labels=sorted({row["streams"] for row in rows}))
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def goals(plot, rows):
    """The share of the device's limit that each goal's measurement reached."""
    rows = [row for row in rows if row["share of it"] is not None]
    if not rows:
        return None
    figure, axes = plot.subplots(figsize=(8, 0.5 * len(rows) + 1))
    axes.barh([f"{row['what']} ({row['goal']})" for row in rows], [100 * row["share of it"] for row in rows])
    axes.set(xlabel="% of the limit measured in the same run")
    axes.invert_yaxis()
    return figure


def main(cpu):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not here: plots left out")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = stage.out(cpu)
    record = stage.load(folder / "results.json")
    drawn = {
        "throughput": (throughput, tables(record, loads.table(loads.size(cpu)))),
        "goals": (goals, tables(record, "Goals")),
    }
    for name, (draw, rows) in drawn.items():
        if rows and (figure := draw(pyplot, rows)):
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            print(f"drew {name}.png")


if __name__ == "__main__":
    main("--cpu" in sys.argv)
