"""How arms and tasks are called in tables and figures."""

from gammatune.policies import POLICIES

TASK_NAMES = {
    "mt_bench": "MT-Bench",
    "translation": "Translation",
    "summarization": "Summarization",
    "qa": "QA",
    "math_reasoning": "Math",
    "rag": "RAG",
}


def policy_name(policy: str) -> str:
    option = POLICIES.options.get(policy)
    return option.title if option else policy


def task_name(task: str) -> str:
    return TASK_NAMES.get(task, task.replace("_", " "))


def arm_names(arms) -> dict[str, str]:
    """Label to readable name, for example "fixed-5" to "fixed 5"; a start is named only where a policy has several.

    Arms that would share a name keep their label.
    """
    policies = [arm.policy for arm in arms]
    names = {arm.label: arm_name(arm, policies.count(arm.policy) > 1) for arm in arms}
    taken = list(names.values())
    return {label: name if taken.count(name) == 1 else label for label, name in names.items()}


def arm_name(arm, several: bool) -> str:
    name = policy_name(arm.policy)
    if arm.gamma is None:
        return name
    if arm.policy == "fixed":
        return f"{name} {arm.gamma}"
    return f"{name} from {arm.gamma}" if several else name
