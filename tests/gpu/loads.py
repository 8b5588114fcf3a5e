"""The loads that Volley and its peers get, and how a row of their table looks."""

FULL = {"streams": (1, 16, 64, 256), "prompt": 512, "output": 512, "long": 8000, "step": 8192}
WARM = (32, 8)  # the prompt and output of a load before each, for what is made ready at first use
SMALL = {"streams": (1, 4), "prompt": 16, "output": 64, "long": 64, "step": 128}


def size(cpu):
    return SMALL if cpu else FULL


def table(size):
    return f"Loads: prompts of about {size['prompt']} tokens, {size['output']} generated"


def row(stage, server, label, streams, load, **more):
    """A row of the table; `load` has what `volley bench` says."""
    names = {
        "output_tok_s": "tok/s",
        "ttft_p50_ms": "TTFT p50, ms",
        "itl_p50_ms": "ITL p50, ms",
        "itl_p99_ms": "ITL p99, ms",
    }
    cells = {shown: load.get(name) for name, shown in names.items()}
    stage.row(table(size(stage.cpu)), server=server, model=label, streams=streams, **cells, **more)


def beside(stage, server, label, streams, reached):
    """Volley's tokens a second over a peer's at the same load, if Volley's were measured before."""
    for name in ("speed-8b", "speed-1b", "speed-w8", "speed-w4"):
        for ours in stage.rows(name, table(size(stage.cpu))):
            if (ours["model"], ours["streams"]) == (label, streams):
                ratio = ours["tok/s"] / reached
                verdict = "-" if stage.cpu else "ahead" if ratio > 1 else "behind"
                what = {"model": label, "streams": streams, "peer": server}
                stage.row("Volley beside its peers", **what, **{"Volley ÷ peer": ratio}, verdict=verdict)
