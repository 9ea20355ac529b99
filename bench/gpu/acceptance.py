"""What the kernels have to reach, as ratios of times of one run on one machine; and what they reached."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """A bound on one ratio of many cases.

    Args:
        about: In words.
        cases: Pattern that the whole name of a case matches.
        ratio: What is compared. "copy": bytes a second, over those of the GPU's copy. "speed <rival>": the rival's time
            over the case's. "time <rival>": the reverse.
        must, want: At least for "copy" and "speed", at most for "time". Without "want", there is nothing more to want.
        least_bytes: That a case moves, to be large enough for its ratio to mean something.
    """

    about: str
    cases: str
    ratio: str
    must: float
    want: float | None = None
    least_bytes: int = 0

    def passes(self, value: float, bound: float) -> bool:
        return value <= bound if self.ratio.startswith("time") else value >= bound

    def worst(self, values: dict[str, float]) -> str:
        """The case that is furthest from the bound."""
        return (max if self.ratio.startswith("time") else min)(values, key=values.get)


NHWC, LARGE = r".* NHWC", 64 * 2**20
FROM_32, FROM_128, BELOW_128 = r"@(32|64|128|256|512|1024) ", r"@(128|256|512|1024) ", r"@(4|8|16|32|64) "

# "kernels": the ratios of bench/gpu/plan.py's part of that name, and of "networks"
KERNELS = (
    Criterion("bias_act, forward and gradient", r"bias_act (forward|gradient) lrelu .*", "copy", 0.90, 0.95, 2 * LARGE),
    Criterion("filters of 4 taps, NHWC", r"upfirdn2d forward 4 taps" + NHWC, "copy", 0.80, 0.90, LARGE),
    Criterion("filter and tail", r"upfirdn2d forward with tail .*", "copy", 0.75, 0.85, LARGE),
    Criterion("filter and tail, of NVIDIA's three passes", r"upfirdn2d forward with tail .*", "time nvidia", 0.55),
    Criterion("filters, NCHW, fp16", r"upfirdn2d forward 4 taps .* float16 NCHW", "copy", 0.55, 0.70, LARGE),
    Criterion("filters, NCHW, fp32", r"upfirdn2d forward 4 taps .* float32 NCHW", "copy", 0.80, 0.90, LARGE),
    Criterion("filters, of NVIDIA's", r"upfirdn2d forward 4 taps .* float16 NHWC", "time nvidia", 1.0, 0.7),
    Criterion("filters of 12 taps, of NVIDIA's two passes", r"upfirdn2d forward 12 taps .*", "time nvidia", 0.8, 0.6),
    Criterion(
        "convolution and data gradient, of cuDNN, from 128 channels and 32 x 32",
        r"convolution (forward|data gradient) (128|256|512)" + FROM_32 + ".*", "speed cudnn", 0.80, 0.95,
    ),
    Criterion("convolution and tail, of cuDNN and the tail's kernel", r"convolution forward with tail .*", "time cudnn", 1.00),
    Criterion(
        "convolution and tail, of cuDNN and the tail's kernel, from 128 x 128",
        r"convolution forward with tail \d+" + FROM_128 + ".*", "time cudnn", 1.00, 0.85,
    ),
    Criterion("weight gradient, of cuDNN", r"convolution weight gradient .*", "speed cudnn", 0.75, 0.90),
    Criterion(
        "modulated layer, of NVIDIA's, from 128 x 128",
        r"modulated layer forward (same|up) \w+ \d+" + FROM_128 + ".*", "time nvidia", 0.75, 0.60,
    ),
    Criterion(
        "modulated layer, of NVIDIA's, below 128 x 128",
        r"modulated layer forward (same|up) \w+ \d+" + BELOW_128 + ".*", "time nvidia", 0.95, 0.60,
    ),
)  # fmt: skip
NETWORKS = (
    Criterion("G, forward and backward, of NVIDIA's", r"G .*", "time nvidia", 0.75),
    Criterion("D, forward and backward, of NVIDIA's", r"D .*", "time nvidia", 0.80),
    Criterion("R1, of NVIDIA's", r"R1 .*", "time nvidia", 0.90),
    Criterion("path length, of NVIDIA's", r"path length .*", "time nvidia", 0.90),
)

# the most that they may take: microseconds a call, seconds
CPU_US, COLD_S, WARM_S = 15.0, 20.0, 2.0


@dataclass(frozen=True)
class Verdict:
    """What came of a criterion.

    Args:
        must, want: "met", "missed" or "not measured"; "-" where there is none.
        words: How many cases, and the worst.
    """

    about: str
    must: str
    want: str
    words: str


def verdicts(parts: dict[str, dict[str, dict]]) -> list[Verdict]:
    """Of everything, from the results by part and item; what was not measured says so."""
    kernels, networks = parts.get("kernels", {}), parts.get("networks", {})
    # a step as it is trained: eager against eager
    steps = {name: eager(result) for name, result in networks.items()}
    copy = rate(parts.get("ceilings", {}).get("copy", {}), "bytes")
    return [
        _right(parts.get("checks", {})),
        *(_verdict(c, ratios(c, kernels, copy)) for c in KERNELS),
        *(_verdict(c, ratios(c, steps, copy)) for c in NETWORKS),
        *_started(parts.get("start-up", {})),
    ]


def ratios(criterion: Criterion, results: dict[str, dict], copy: float | None) -> dict[str, float]:
    """By case, those that were measured."""
    kind, _, rival = criterion.ratio.partition(" ")
    found = {}
    for name, result in results.items():
        if "us" not in result or not re.fullmatch(criterion.cases, name):
            continue
        if result.get("bytes", 0) < criterion.least_bytes:
            continue
        if kind == "copy":
            if copy:
                found[name] = rate(result, "bytes") / copy
        elif us := result.get("rivals", {}).get(rival, {}).get("us"):
            found[name] = us / result["us"] if kind == "speed" else result["us"] / us
    return found


def rate(result: dict, what: str) -> float | None:
    """Bytes or FLOPs a second."""
    return result[what] / result["us"] * 1e6 if "us" in result and what in result else None


def eager(result: dict) -> dict:
    """A step of training by the fastest implementation, its rivals beside it, all of them eager."""
    modes = {name.removesuffix(" eager"): r for name, r in result.items() if name.endswith(" eager")}
    return modes.pop("fastest", {}) | {"rivals": modes}


def _right(checks: dict[str, dict]) -> Verdict:
    done = {name: result for name, result in checks.items() if "skipped" not in result}
    bad = [name for name, result in done.items() if "error" in result or result["wrong"]]
    skipped = len(checks) - len(done)
    words = f"{len(done) - len(bad)} of {len(checks)} cases" + (f", {skipped} skipped" if skipped else "")
    words += f"; first: {bad[0]}" if bad else ""
    outcome = "missed" if bad else "met" if done and not skipped else "not measured"
    return Verdict("right: near float64, wholly written, the same bits again", outcome, "-", words)


def _verdict(criterion: Criterion, values: dict[str, float]) -> Verdict:
    if not values:
        wanted = "-" if criterion.want is None else "not measured"
        return Verdict(criterion.about, "not measured", wanted, f"{criterion.ratio}: no case")
    worst = criterion.worst(values)
    sense = "<=" if criterion.ratio.startswith("time") else ">="

    def outcome(bound: float | None) -> str:
        if bound is None:
            return "-"
        return "met" if criterion.passes(values[worst], bound) else "missed"

    passed = sum(criterion.passes(value, criterion.must) for value in values.values())
    words = f"{criterion.ratio} {sense} {criterion.must:g}: {passed} of {len(values)}; worst {values[worst]:.2f}, {worst}"
    return Verdict(criterion.about, outcome(criterion.must), outcome(criterion.want), words)


def _started(results: dict[str, dict]) -> Iterator[Verdict]:
    calls, steps = results.get("CPU per call", {}), results.get("first steps", {})
    bounds = [(f"CPU, {name}", result["us"], CPU_US, "us") for name, result in calls.items() if isinstance(result, dict)]
    # a run compiles its kernels ahead
    for name, most in (("cold, compiled ahead", COLD_S), ("warm", WARM_S)):
        if "s" in steps.get(name, {}):
            bounds.append((f"start, {name}", steps[name]["s"], most, "s"))
    for about, value, most, unit in bounds:
        yield Verdict(about, "met" if value <= most else "missed", "-", f"{value:.3g} {unit}, at most {most:g}")
    if not calls or "error" in calls or "skipped" in calls:
        yield Verdict("CPU per call", "not measured", "-", f"at most {CPU_US:g} us")
    if not any("s" in result for result in steps.values() if isinstance(result, dict)):
        yield Verdict("start of training", "not measured", "-", f"at most {COLD_S:g} s cold, {WARM_S:g} s warm")
