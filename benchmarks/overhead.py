"""What does a round cost beside its forwards? python benchmarks/overhead.py [options] [KEY=VALUE ...]

Both models' forwards are timed from inside the loop (on CUDA with events, so that nothing waits), and all rounds of an
answer from outside: the share that is left goes into drawing, judging, cropping, host reads and the policy. Host reads are
transfers from device to host, each of which waits for the device. The prompt's forwards are left out. Decoding without a
draft, at a fixed gamma and under both GammaTunes takes turns question by question, in each runtime, in the pair's own dtype
or runtime.dtype. The last line is one JSON object.
"""

import sys
from dataclasses import dataclass, field

from harness import Arm, Decoder, build_decoders, make_parser, measure, print_report, read_prompts, run_benchmark, tabulate

from gammatune.config import RunConfig
from gammatune.models.pair import load_pair
from gammatune.policies import POLICIES, Policy

ARMS = {
    "autoregressive": POLICIES["ar"](),
    "fixed_5": POLICIES["fixed"](gamma=5),
    "gammatune": POLICIES["gammatune"](),
    "gammatune_plus": POLICIES["gammatune_plus"](),
}
FIGURES = ["share_outside", "round_ms", "outside_ms", "reads_per_round"]


@dataclass
class Watched:
    """A decoder whose forwards leave marks before and after."""

    decoder: Decoder
    marks: dict[str, list] = field(default_factory=dict)

    def __post_init__(self):
        for role, model in self.decoder.models.items():
            model.forward = self.watch(role, model.forward)

    def watch(self, role: str, forward):
        def watched(*args, **options):
            start = self.decoder.device.mark()
            logits = forward(*args, **options)
            self.marks[role].append((start, self.decoder.device.mark()))
            return logits

        return watched

    def answer(self, prompt: list[int], policy: Policy, tokens: int) -> dict:
        """Of the rounds of one answer, each by their number: all of their ms, those outside forwards, host reads."""
        device = self.decoder.device
        self.marks, before = {role: [] for role in self.decoder.models}, device.reads
        made = self.decoder.answer(prompt, policy, tokens)
        # Each model's first forward reads the prompt
        inside = sum(device.between(*marks) for found in self.marks.values() for marks in found[1:])
        whole, rounds = made.wall_ms - made.prefill_ms, len(made.rounds)
        figures = (1 - inside / whole, whole / rounds, (whole - inside) / rounds, (device.reads - before) / rounds)
        return dict(zip(FIGURES, figures, strict=True))


def make_arms(decoders: list[Decoder], tokens: int) -> list[Arm]:
    return [
        Arm(
            {"policy": name, "runtime": one.decoder.name},
            lambda prompt, one=one, rule=rule: one.answer(prompt, rule, tokens),
        )
        for one in map(Watched, decoders)
        for name, rule in ARMS.items()
    ]


def report(options, config: RunConfig) -> int:
    pair = load_pair(config.model_pair, config.runtime.device, config.runtime.dtype)
    prompts = read_prompts(pair, config, options.questions, options.tokens)
    decoders = list(build_decoders(pair).values())
    for decoder in decoders:
        decoder.warm(max(map(len, prompts)) + options.tokens)
    arms = make_arms(decoders, options.tokens)
    measured = measure(arms, prompts, pair.device, options.repeats)
    table = tabulate(measured, ["policy", "runtime"], FIGURES, "share_outside")
    share = table.set_index(["policy", "runtime"]).loc[("fixed_5", "eager"), "share_outside"]
    result = {"eager_fixed_5_share": float(share), "dtype": str(pair.dtype).removeprefix("torch."), "pair": pair.name}
    print_report([table], result, pair.device, digits=4)
    return 0


def build_parser():
    numbers = {
        "questions": (6, 2, "prompts, of the first turns of the tasks"),
        "tokens": (64, 2, "longest answer"),
        "repeats": (1, 1, "passes over all prompts"),
    }
    return make_parser(__doc__, numbers)


def main(words: list[str]) -> int:
    return run_benchmark(build_parser(), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
