"""Whether log-probabilities are as near to those in float32 as the same weights in bf16 are elsewhere."""

from dataclasses import dataclass

# Rounding takes other ways here than there: as much as this of the reference's own error is allowed.
RMS_MULTIPLE = 1.5
MAX_MULTIPLE = 3.0
# Where bf16 has hardly any error: a log-probability is printed with eight digits, and sums have their order.
LEAST = 1e-3


@dataclass(frozen=True)
class Difference:
    """Of many log-probabilities from those in float32."""

    count: int
    rms: float
    max: float
    # The most log-probability that was given up where another token than float32's best seemed best.
    given_up: float


def difference(values, exact, chosen, best):
    """`values` beside `exact` at the same tokens, and the exact values of the tokens that were found best beside the
    best there are."""
    if not values or len(values) != len(exact):
        raise ValueError(f"{len(values)} values, {len(exact)} exact ones")
    apart = [abs(one - other) for one, other in zip(values, exact)]
    if any(x != x for x in apart):
        return Difference(len(apart), float("inf"), float("inf"), float("inf"))
    given_up = max((right - mine for mine, right in zip(chosen, best, strict=True)), default=0.0)
    return Difference(len(apart), (sum(x * x for x in apart) / len(apart)) ** 0.5, max(apart), given_up)


def complaints(ours, theirs):
    """What is wrong with ours, theirs being bf16's; empty if nothing is."""
    limits = [
        ("root mean square", ours.rms, RMS_MULTIPLE, theirs.rms),
        ("largest difference", ours.max, MAX_MULTIPLE, theirs.max),
        # A near tie may go either way; its two differences may add up.
        ("log-probability given up", ours.given_up, 2 * MAX_MULTIPLE, theirs.max),
    ]
    return [
        f"{what} {value:.2g} is beyond {multiple:g} × {max(reference, LEAST):.2g}"
        for what, value, multiple, reference in limits
        if not value <= multiple * max(reference, LEAST)
    ]
