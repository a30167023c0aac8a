"""Workflows in API format: nodes by their title or class."""


def find(workflow: dict, name: str) -> str:
    """The id of the one node with this title, or of this class."""
    (found,) = (i for i, node in workflow.items() if name in (node["_meta"]["title"], node["class_type"]))
    return found


def only(workflow: dict, *names: str) -> dict:
    """``workflow`` with what the named nodes need, and nothing else."""
    kept, wanted = {}, [find(workflow, name) for name in names]
    while wanted:
        node = wanted.pop()
        kept[node] = workflow[node]
        wanted += [value[0] for value in workflow[node]["inputs"].values() if isinstance(value, list)]
    return kept
