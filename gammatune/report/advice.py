"""Advice as JSON for programs and as text for people: the text is made of the JSON, so both tell the same."""

import math

import pandas as pd

from gammatune.policies import Policy
from gammatune.report.names import policy_name, task_name
from gammatune.report.numbers import interval, number
from gammatune.report.tables import to_markdown
from gammatune.studies.advise import ALONE, Advice, DrafterAdvice, EngineAdvice, Rival
from gammatune.studies.sweep import Ratio
from gammatune.studies.tuning import chosen_settings

SCHEMA = 1
DIGITS = 4
SHOWN = 10  # policies in the text
NO_INTERVAL = "(no interval)"


def advice_json(advice: Advice, kind: str, name: str, table: str) -> dict:
    """Plain JSON of schema 1; null stands for a number that there is not. kind: pair or table. table: its path."""
    turns = advice.table.turns
    questions = {(turn.task, turn.question_id) for turn in turns}
    found = {
        "schema": SCHEMA,
        "source": {
            "kind": kind,
            "name": name,
            "table": table,
            "questions": len(questions),
            "turns": len(turns),
            "tokens": advice.table.tokens,
            "tasks": [task.task for task in advice.by_task],
            "signals": advice.table.watched,
            "complete": advice.table.complete,
        },
        "prices": {
            "ratio": advice.ratio,
            "source": advice.prices.source,
            "machine": advice.prices.machine,
            "warnings": list(advice.prices.warnings),
        },
        "pays": advice.pays,
        "verdict": verdict(advice),
        **describe_policy(advice.best.policy),
        **describe_ratio(advice.best.over_alone),
        "untuned": describe_policy(advice.untuned.policy) | describe_ratio(advice.untuned.over_alone),
        "best_fixed": {"gamma": advice.fixed.policy.gamma} | describe_ratio(advice.fixed.over_alone),
        "break_even": {
            "gamma": advice.break_even.gamma,
            "acceptance": advice.break_even.acceptance,
            "found": advice.break_even.found,
            "margin": advice.break_even.margin,
        },
        "ranking": [
            describe_policy(rival.policy) | {"tuned": rival.tuned} | describe_ratio(rival.over_alone)
            for rival in advice.ranking
        ],
        "by_task": [vars(task) for task in advice.by_task],
        "sensitivity": [vars(each) for each in advice.sensitivity],
        "engines": [describe_engine(engine) for engine in advice.engines],
        "drafters": [describe_drafter(drafter) for drafter in advice.drafters],
        "warnings": advice.warnings,
    }
    return rounded(found)


def describe_policy(policy: Policy) -> dict:
    return {"policy": policy.name, "title": policy_name(policy.name), "settings": chosen_settings(policy)}


def describe_ratio(ratio: Ratio) -> dict:
    return {"speedup": ratio.value, "interval": [ratio.low, ratio.high]}


def describe_engine(advice: EngineAdvice) -> dict:
    return {
        "engine": advice.engine.name,
        "version": advice.engine.version,
        "policy": advice.policy.name if advice.policy else None,
        "line": advice.line.text,
        "settings": advice.line.settings,
        **describe_ratio(advice.over_alone),
        "absent": advice.engine.absent,
    }


def describe_drafter(advice: DrafterAdvice) -> dict:
    named = {"drafter": advice.contender.choice, "name": advice.contender.name}
    return named | describe_policy(advice.best.policy) | describe_ratio(advice.best.over_alone)


def rounded(node):
    """Numbers of measurements to four digits after the point; what JSON has no number for becomes null."""
    if isinstance(node, dict):
        return {key: rounded(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [rounded(value) for value in node]
    if isinstance(node, float):
        return round(node, DIGITS) if math.isfinite(node) else None
    return node


def verdict(advice: Advice) -> str:
    """One sentence."""
    best, name = advice.best, name_rival(advice.best)
    told = f"{best.over_alone.value:.2f} {interval(best.over_alone.low, best.over_alone.high, instead=NO_INTERVAL)} times"
    if best.policy.name == ALONE:
        fixed = advice.fixed
        return (
            "Do not speculate: of all policies the target alone is the fastest, and the best fixed length, "
            f"{fixed.policy.gamma}, makes it {fixed.over_alone.value:.2f} times as fast."
        )
    if advice.pays:
        return f"Speculating pays: with {name} the pair is {told} as fast as the target alone."
    if best.over_alone.high < 1:
        return f"Do not speculate: with {name}, the best policy, the pair is {told} as fast as the target alone."
    return (
        f"It is not certain that speculating pays: with {name} the pair is {told} as fast as the target alone; more "
        "questions would tell."
    )


def name_rival(rival: Rival) -> str:
    return name_policy(describe_policy(rival.policy))


def name_policy(found: dict) -> str:
    """For example "fixed (gamma 3)"; found: as `describe_policy` makes it."""
    if found["policy"] == ALONE:
        return "the target alone"
    settings = ", ".join(f"{field.replace('_', ' ')} {value}" for field, value in found["settings"].items())
    return f"{found['title']} ({settings})" if settings else found["title"]


def show_speedup(found: dict) -> str:
    return f"{number(found['speedup'])} {interval(*found['interval'], instead=NO_INTERVAL)}"


def advice_text(found: dict) -> str:
    """Markdown that reads well on a terminal, too. found: as `advice_json` makes it."""
    parts = [head(found), answer(found), policies(found), drafters(found), tasks(found), sensitivity(found), engines(found)]
    parts.append(warnings(found))
    return "\n\n".join(part for part in parts if part)


def head(found: dict) -> str:
    source, prices = found["source"], found["prices"]
    machine = f" on {prices['machine']}" if prices["machine"] else ""
    ratio = "the drafter takes no forwards" if prices["ratio"] is None else f"T_target / T_draft {prices['ratio']:.3g}"
    return (
        f"# Advice for {source['name']}\n\n{found['verdict']}\n\n"
        f"{source['questions']} questions, {source['tokens']:,} tokens; prices: {prices['source']}{machine}, {ratio}. "
        "Settings are chosen on one half of the questions, all numbers are of the other half: speed over the target alone, "
        "modelled, with 95 % paired bootstrap intervals."
    )


def answer(found: dict) -> str:
    fixed, even, untuned = found["best_fixed"], found["break_even"], found["untuned"]
    needed = "no share of accepted tokens is enough"
    if even["acceptance"] is not None:
        needed = f"{even['acceptance']:.1%} of the drafted tokens must be accepted"
    margin = "" if even["margin"] is None else f", {100 * even['margin']:+.1f} points"
    lines = [
        f"- Recommended: {name_policy(found)}: {show_speedup(found)}",
        f"- Without tuning: {name_policy(untuned)}: {show_speedup(untuned)}",
        f"- Best fixed length: {fixed['gamma']}: {show_speedup(fixed)}",
        f"- Break-even with that length: {needed}; {even['found']:.1%} are{margin}",
    ]
    return "\n".join(lines)


def policies(found: dict) -> str:
    rows = [
        {"policy": name_policy(each), "settings": "tuned" if each["tuned"] else "as shipped", "speedup": show_speedup(each)}
        for each in found["ranking"][:SHOWN]
    ]
    more = len(found["ranking"]) - SHOWN
    end = f"\n\n{more} slower ones are in advice.json." if more > 0 else ""
    return f"## Policies\n\n{to_markdown(pd.DataFrame(rows))}{end}"


def drafters(found: dict) -> str:
    rows = [
        {
            "drafter": f"{each['name']} (`drafter={each['drafter']}`)",
            "policy": name_policy(each),
            "speedup": show_speedup(each),
        }
        for each in found["drafters"]
    ]
    return f"## Other drafters, the fastest when choosing first\n\n{to_markdown(pd.DataFrame(rows))}" if rows else ""


def tasks(found: dict) -> str:
    rows = [
        {
            "task": task_name(each["task"]),
            "questions": each["questions"],
            "recommended": number(each["speedup"]),
            "best fixed length": each["best_gamma"],
            "with it": number(each["best_fixed"]),
        }
        for each in found["by_task"]
    ]
    return f"## By task\n\n{to_markdown(pd.DataFrame(rows))}"


def sensitivity(found: dict) -> str:
    rows = [
        {
            "price of the draft": f"x {each['draft_price']:g}",
            "recommended": number(each["policy_speedup"]),
            "best fixed length": each["best_gamma"],
            "with it": number(each["best_fixed_speedup"]),
            "pays": "yes" if each["pays"] else "no",
        }
        for each in found["sensitivity"]
    ]
    return f"## If the draft cost more or less\n\n{to_markdown(pd.DataFrame(rows))}"


def engines(found: dict) -> str:
    return "## What to paste\n\n" + "\n\n".join(map(engine_text, found["engines"])) if found["engines"] else ""


def engine_text(each: dict) -> str:
    absent = f"\n\nNot there: {each['absent']}." if each["absent"] else ""
    what = "no draft"
    if each["policy"]:
        doubt = "" if (each["interval"][0] or 0) > 1 else ", which may not pay"
        what = f"{policy_name(each['policy'])}, {show_speedup(each)}{doubt}"
    return f"**{each['engine']}** {each['version']}: {what}\n\n    {each['line']}{absent}"


def warnings(found: dict) -> str:
    return "## Remarks\n\n" + "\n".join(f"- {sentence}" for sentence in found["warnings"]) if found["warnings"] else ""
