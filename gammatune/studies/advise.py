"""Advice for a table at a price list: does speculating pay, with which policy and settings, and what to tell each engine.

Settings and policies are chosen on one half of the questions, and everything that is told is measured on the other half. All
of it is replay: no model and no torch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of, with_settings
from gammatune.replay.prices import PriceList, price, prompt_lengths
from gammatune.replay.simulate import Replay, fill_unknown
from gammatune.replay.speeds import Bench, build_bench, measure_speeds, split_questions
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.bootstrap import SEED, percentile_interval, resampled_means, stratified_ratio_interval
from gammatune.studies.bounds import count_unknown, estimate_match_rate
from gammatune.studies.drafters import Contender, add_lists, usual_policies
from gammatune.studies.engines import ANY, Engine, Line, Models, find_choice, load_engines, write_line
from gammatune.studies.headline import OVERALL, STARTS, find_replayable, order_tasks
from gammatune.studies.sweep import Ratio
from gammatune.studies.tuning import grid_of, tune_all

LEAST_QUESTIONS = 12
FACTORS = (0.5, 1.0, 2.0)  # of the draft's price
#: answer tokens of either half that are replayed, so that a table of any size is answered in seconds
MOST_TUNING, MOST_REPORTED = 6_000, 20_000
DRAWS = 3  # of the unknown matches of an imported log
FROZEN = "tuned_fixed"  # a fixed length that was tuned elsewhere: here, fixed is tuned on the questions themselves
ALONE = "ar"


@dataclass(frozen=True)
class PriceNote:
    """Where prices come from."""

    source: str  # "measured here", "file ...", "assumed ratio" or "the table's"
    machine: str | None = None  # that they were measured on; None where nobody knows
    warnings: tuple[str, ...] = ()  # sentences


@dataclass(eq=False)
class Half:
    """Questions ready for replay: one bench, or several where unknown matches were drawn several times."""

    benches: list[Bench]

    @property
    def task(self) -> np.ndarray:
        """Of each question [questions]."""
        return self.benches[0].task

    def measure(self, policies: list[Policy]) -> np.ndarray:
        """Modelled tokens/s [policies, questions], the mean over the benches."""
        return np.mean([measure_speeds(bench, policies) for bench in self.benches], axis=0)

    def at(self, curve: PriceList) -> "Half":
        other = Half([replace(bench, curve=curve) for bench in self.benches])
        other.fixed_rounds = self.fixed_rounds  # which no price changes
        return other

    @cached_property
    def fixed_rounds(self) -> list[list[Replay]]:
        """Of each of STARTS as a fixed gamma, by bench."""
        return [[bench.replay(POLICIES["fixed"](gamma=gamma)) for gamma in STARTS] for bench in self.benches]

    def fixed_speeds(self) -> np.ndarray:
        """Modelled tokens/s of each of STARTS as a fixed gamma [starts, questions], the mean over the benches."""
        pairs = zip(self.benches, self.fixed_rounds, strict=True)
        return np.mean([[bench.speeds_of(done, watched=False) for done in rounds] for bench, rounds in pairs], axis=0)

    def strata(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows [rows, questions] by task, for resampling; all together where each task has one question alone."""
        tasks, counts = np.unique(self.task, return_counts=True)
        return [rows] if counts.max() < 2 else [rows[:, self.task == task] for task in tasks]

    def part(self, task: str) -> np.ndarray:
        """Which questions belong to a task [questions]; all of them where none does."""
        part = self.task == task
        return part if task != OVERALL and part.any() else np.ones(len(self.task), bool)


@dataclass(eq=False)
class Halves:
    """A table's questions, of which one half chooses and the other one reports."""

    tuning: Half
    reporting: Half
    left_out: int  # questions of both that were not replayed, to be quick


@dataclass(eq=False)
class Rival:
    """A policy with settings that may be recommended."""

    policy: Policy
    tuned: bool  # whether its settings were chosen here; else they are those that it came with
    on_tuning: float  # mean tokens/s on the tuning half, by which it is chosen
    speeds: np.ndarray | None = None  # tokens/s on the reporting half [questions]
    over_alone: Ratio | None = None  # there, over the target alone


@dataclass(frozen=True)
class BreakEven:
    """How often drafted tokens must be accepted for a fixed gamma to equal the target alone, and how often they are."""

    gamma: int
    acceptance: float | None  # of drafted tokens; above 1, or None: no acceptance is enough
    found: float

    @property
    def margin(self) -> float | None:
        return None if self.acceptance is None else self.found - self.acceptance


@dataclass(frozen=True)
class TaskAdvice:
    """One task, on the reporting half."""

    task: str
    questions: int  # of it that the numbers come from
    speedup: float  # of the recommended policy over the target alone
    best_gamma: int  # fixed, fastest on this task's tuning half
    best_fixed: float  # that one over the target alone


@dataclass(frozen=True)
class Sensitivity:
    """The same questions with a draft of another price."""

    draft_price: float  # times the draft's own
    policy_speedup: float  # of the recommended policy with its settings, over the target alone
    best_gamma: int  # fixed, fastest on the tuning half at this price
    best_fixed_speedup: float
    pays: bool  # whether either's interval lies above 1


@dataclass(frozen=True)
class EngineAdvice:
    """What to tell an engine."""

    engine: Engine
    policy: Policy | None  # what its line makes it do; None: no draft
    line: Line
    over_alone: Ratio


@dataclass(eq=False)
class DrafterAdvice:
    """A drafter under the policy that is fastest with it on the tuning half."""

    contender: Contender
    best: Rival


@dataclass(eq=False)
class Advice:
    """What `gammatune advise` answers. Every ratio is over the target alone, on the reporting half."""

    table: AcceptanceTable
    prices: PriceNote
    ratio: float  # T_target / T_draft at the questions' mean context; infinite where drafting takes no forwards
    best: Rival  # fastest on the tuning half
    untuned: Rival  # the same of those that need no tuning
    fixed: Rival  # the same of fixed lengths
    break_even: BreakEven  # of that fixed length
    ranking: list[Rival]  # fastest first
    by_task: list[TaskAdvice]
    sensitivity: list[Sensitivity]
    engines: list[EngineAdvice]
    drafters: list[DrafterAdvice]  # fastest on the tuning half first, the pair's own among them; none where it is alone
    warnings: list[str]  # sentences

    @property
    def pays(self) -> bool:
        return self.best.over_alone.low > 1


def advise(
    table: AcceptanceTable,
    curve: PriceList,
    note: PriceNote,
    policies: dict[str, Policy],
    models: Models | None = None,
    beside: Sequence[Contender] = (),
) -> Advice:
    """policies: those that the table can replay. beside: other drafters along the same answers.

    Raises UserError for too few questions, or none of them in pairs.
    """
    halves = split_table(table, curve)
    rivals = list_rivals(halves.tuning, policies)
    compare_with_target(halves.reporting, rivals)
    best, fixed = fastest(rivals), fastest(rival for rival in rivals if rival.policy.name == "fixed")
    return Advice(
        table=table,
        prices=note,
        ratio=float(curve.ratio(table.mean_context)) if table.forwards_per_token else math.inf,
        best=best,
        untuned=fastest(untuned_rivals(rivals)),
        fixed=fixed,
        break_even=find_break_even(halves.reporting, fixed.policy),
        ranking=sorted(rivals, key=lambda rival: -rival.over_alone.value),
        by_task=advise_by_task(halves, best),
        sensitivity=[vary_draft_price(halves, curve, best, factor) for factor in FACTORS],
        engines=advise_engines(table, rivals, models or Models()),
        drafters=advise_drafters(Contender.of(table, curve), best, beside),
        warnings=[*note.warnings, *list_warnings(table, curve, halves, best.policy)],
    )


def refuse_few(questions: int) -> None:
    """Raises UserError for fewer questions than half of which can choose anything."""
    if questions < LEAST_QUESTIONS:
        raise UserError(
            f"Of at least {LEAST_QUESTIONS} questions, one half of which chooses and the other one reports, there are "
            f"{questions}: give more with tasks.limit or a longer tasks.path, or record a larger table."
        )


def question_of(turn) -> tuple[str, int]:
    return turn.task, turn.question_id


def split_table(table: AcceptanceTable, curve: PriceList) -> Halves:
    """Raises UserError where either half would be empty."""
    tokens: dict[tuple[str, int], int] = {}
    for turn in table.turns:
        tokens[question_of(turn)] = tokens.get(question_of(turn), 0) + turn.tokens
    refuse_few(len(tokens))
    tuning = split_questions(np.array([task for task, _ in tokens]))
    if not tuning.any():
        raise UserError("This table has one question per task, so it cannot be split for tuning: record more questions.")
    chosen, told = (
        thin([key for key, mine in zip(tokens, tuning, strict=True) if mine == half], tokens, most)
        for half, most in ((True, MOST_TUNING), (False, MOST_REPORTED))
    )
    draws = 1 if table.complete else DRAWS
    return Halves(
        tuning=build_half(table, curve, chosen, [0], tuning=True),
        reporting=build_half(table, curve, told, range(draws), tuning=False),
        left_out=len(tokens) - len(chosen) - len(told),
    )


def thin(keys: list[tuple[str, int]], tokens: dict[tuple[str, int], int], most: int) -> list[tuple[str, int]]:
    """An equal share of each task, evenly spaced, that has about `most` tokens; never less than two questions of a task."""
    share = min(1.0, most / max(1, sum(tokens[key] for key in keys)))
    kept = set()
    for task in {task for task, _ in keys}:
        mine = [key for key in keys if key[0] == task]
        count = min(len(mine), max(2, round(share * len(mine))))
        kept |= {mine[place] for place in np.linspace(0, len(mine) - 1, count).round().astype(int)}
    return [key for key in keys if key in kept]


def build_half(
    table: AcceptanceTable, curve: PriceList, keys: list[tuple[str, int]], seeds: Iterable[int], tuning: bool
) -> Half:
    part = AcceptanceTable([turn for turn in table.turns if question_of(turn) in set(keys)], table.facts)
    filled = [part] if table.complete else [fill_unknown(part, estimate_match_rate(table), seed) for seed in seeds]
    benches = [build_bench(each, curve) for each in filled]
    return Half([replace(bench, tuning=np.full(len(bench.task), tuning)) for bench in benches])


def list_rivals(tuning: Half, policies: dict[str, Policy]) -> list[Rival]:
    """Every policy as it came, and once more as it is fastest on the tuning half; none twice, and no oracle."""
    always = {name: POLICIES[name]() for name in (ALONE, "fixed")}
    live = {name: policy for name, policy in (always | policies).items() if not policy.oracle and name != FROZEN}
    alike = find_alike(live)
    tuned = tune_all(tuning.benches[0], {name: policy for name, policy in live.items() if name not in alike})
    rivals = []
    for name, policy in live.items():
        if name in alike:
            rivals.append(Rival(policy, False, float(tuning.measure([policy]).mean())))
            continue
        found = tuned[name]
        rivals.append(Rival(with_settings(policy), False, float(found.default.mean())))
        if found.settings:
            rivals.append(Rival(found.policy, True, float(found.speeds.mean())))
    return unlike(rivals)


def identity(policy: Policy) -> tuple:
    return type(policy), repr(settings_of(policy))


def find_alike(policies: dict[str, Policy]) -> set[str]:
    """Names of presets whose grid holds nothing that an earlier policy's does not: they would be tuned to the same."""
    seen, alike = set(), set()
    for name, policy in policies.items():
        points = {identity(with_settings(policy, **point)) for point in grid_of(policy)}
        if points and points <= seen:
            alike.add(name)
        seen |= points | {identity(policy)}
    return alike


def unlike(rivals: list[Rival]) -> list[Rival]:
    """The first one of each rule and settings."""
    return list({identity(rival.policy): rival for rival in reversed(rivals)}.values())[::-1]


def fastest(rivals: Iterable[Rival]) -> Rival:
    """On the tuning half; the first one of equals."""
    return max(rivals, key=lambda rival: rival.on_tuning)


def untuned_rivals(rivals: list[Rival]) -> list[Rival]:
    """Of the policies that draft: those that name nothing to tune, else all as they came; else the target."""
    shipped = [rival for rival in rivals if not rival.tuned and rival.policy.name != ALONE]
    return [rival for rival in shipped if not rival.policy.grid] or shipped or rivals


def compare_with_target(reporting: Half, rivals: list[Rival]) -> None:
    """Measure all of them; one draw of questions serves all intervals."""
    rows = reporting.measure([POLICIES[ALONE](), *(rival.policy for rival in rivals)])
    rng = np.random.default_rng(SEED)
    sums = sum(stratum.shape[1] * resampled_means(stratum, rng) for stratum in reporting.strata(rows))
    for row, rival in enumerate(rivals, start=1):
        low, high = percentile_interval(sums[row] / sums[0])
        rival.speeds, rival.over_alone = rows[row], Ratio(float(rows[row].mean() / rows[0].mean()), low, high)


def find_break_even(reporting: Half, fixed: Policy) -> BreakEven:
    """Of a fixed gamma, from its own rounds: as many of them as the target alone would have time for.

    The draft's prefill counts; with it, a draft can be too slow for any acceptance.
    """
    bench = reporting.benches[0]
    done = bench.replay(fixed)
    prefill = bench.curve.prefill_both.at(prompt_lengths(bench.turns)).sum()
    spent = price(done, bench.turns, bench.curve, watched=False, drafts=True).sum() - prefill
    allowed = price(bench.replay(POLICIES[ALONE]()), bench.turns, bench.curve, watched=False).sum() - prefill
    drafted = done.drafted.sum()
    found = float(done.accepted.sum() / drafted) if drafted else 0.0
    if allowed <= 0 or not drafted:
        return BreakEven(fixed.gamma, None, found)
    rounds = allowed / (spent / done.rounds)
    needed = (done.rounds + done.accepted.sum()) / rounds - 1  # accepted tokens per round
    return BreakEven(fixed.gamma, float(max(0.0, needed * done.rounds / drafted)), found)


def advise_by_task(halves: Halves, best: Rival) -> list[TaskAdvice]:
    alone, fixed = halves.reporting.measure([POLICIES[ALONE]()])[0], halves.reporting.fixed_speeds()
    on_tuning, found = halves.tuning.fixed_speeds(), []
    for task in order_tasks(np.unique(halves.reporting.task)):
        part, place = halves.reporting.part(task), int(on_tuning[:, halves.tuning.part(task)].mean(axis=1).argmax())
        ours, theirs = (float(speeds[part].mean() / alone[part].mean()) for speeds in (best.speeds, fixed[place]))
        found.append(TaskAdvice(task, int(part.sum()), ours, STARTS[place], theirs))
    return found


def vary_draft_price(halves: Halves, curve: PriceList, best: Rival, factor: float) -> Sensitivity:
    """The recommended policy keeps its settings; one that decides by prices is told the other ones."""
    other = curve.with_draft_price(factor)
    reporting = halves.reporting.at(other)
    place = int(halves.tuning.at(other).fixed_speeds().mean(axis=1).argmax())
    fixed, (alone, ours) = reporting.fixed_speeds()[place], reporting.measure([POLICIES[ALONE](), best.policy])
    lows = [interval_over(reporting, speeds, alone)[0] for speeds in (ours, fixed)]
    ratios = [float(speeds.mean() / alone.mean()) for speeds in (ours, fixed)]
    return Sensitivity(factor, ratios[0], STARTS[place], ratios[1], max(lows) > 1)


def interval_over(half: Half, speeds: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    pair = np.stack([speeds, reference])
    return stratified_ratio_interval(half.strata(pair))


def advise_drafters(own: Contender, best: Rival, beside: Sequence[Contender]) -> list[DrafterAdvice]:
    """Each of them, and lists of two, under the usual policies."""
    found = [DrafterAdvice(own, best)]
    for contender in add_lists([own, *beside])[1:]:
        halves = split_table(contender.table, contender.curve)
        rivals = list_rivals(halves.tuning, find_replayable(contender.table, usual_policies()))
        fastest_there = fastest(rivals)
        compare_with_target(halves.reporting, [fastest_there])
        found.append(DrafterAdvice(contender, fastest_there))
    return sorted(found, key=lambda each: -each.best.on_tuning) if beside else []


def advise_engines(table: AcceptanceTable, rivals: list[Rival], models: Models) -> list[EngineAdvice]:
    """None for a drafter that is no draft model, which no line here names."""
    return [advise_engine(engine, rivals, models) for engine in load_engines()] if table.by_draft_model else []


def advise_engine(engine: Engine, rivals: list[Rival], models: Models) -> EngineAdvice:
    """The fastest on the tuning half of what it can run, the target alone included."""
    able = [rival for rival in rivals if rival.policy.name == ALONE or can_run(engine, rival.policy)]
    best = fastest(able)
    policy = None if best.policy.name == ALONE else best.policy
    return EngineAdvice(engine, policy, write_line(engine, policy, models), best.over_alone)


def can_run(engine: Engine, policy: Policy) -> bool:
    """Only a policy that has the name of its rule or of a preset: a line must be able to name it."""
    choice = find_choice(engine, policy.name)
    return choice is not None and (choice.policy != ANY or policy.name in POLICIES)


def list_warnings(table: AcceptanceTable, curve: PriceList, halves: Halves, best: Policy) -> list[str]:
    """What limits the advice, a sentence each."""
    found = []
    if table.facts.get("random_weights"):
        found.append("The models' weights are random, so the advice means nothing.")
    if not table.watched:
        found.append("The table has no draft signals, so rules that watch the draft were left out.")
    if not all(len(turn.output_ids) for turn in table.turns):
        found.append("The table has no ids of tokens, so rules that read the text were left out.")
    if not table.complete:
        found.append(describe_bounds(table, curve, halves, best))
    if not table.by_draft_model:
        found.append("The drafter is no draft model, so there are no lines for engines, which would name one.")
    if halves.left_out:
        replayed = len(halves.tuning.task), len(halves.reporting.task)
        found.append(
            f"To be quick, {replayed[0]} questions choose and {replayed[1]} others report, an equal share of each task; "
            f"{halves.left_out} were not replayed."
        )
    return found


def describe_bounds(table: AcceptanceTable, curve: PriceList, halves: Halves, best: Policy) -> str:
    """How far the unknown matches could move the recommended policy."""
    keys = set(zip(halves.reporting.task, halves.reporting.benches[0].question_id, strict=True))
    part = AcceptanceTable([turn for turn in table.turns if question_of(turn) in keys], table.facts)
    ends = []
    for rate in (0.0, 1.0):
        alone, ours = Half([build_bench(fill_unknown(part, rate), curve)]).measure([POLICIES[ALONE](), with_settings(best)])
        ends.append(ours.mean() / alone.mean())
    return (
        f"{count_unknown(table):.1%} of the matches are unknown and were drawn at the estimated rate "
        f"{estimate_match_rate(table):.2f}; with all of them wrong the recommended policy is at {ends[0]:.2f}, with all of "
        f"them right at {ends[1]:.2f}."
    )
