"""What is written in a picture."""


def plain(text: str) -> str:
    """A text as it is to be read: matplotlib takes what stands between two dollars for a formula.

    Names of models, runs and sets come from outside, and none of what is written here is a formula.

    Example:
        >>> print(plain("costs $5, or $6"))
        costs \\$5, or \\$6
    """
    return text.replace("$", r"\$")
