"""How a number of things is said."""


def counted(number: int, noun: str) -> str:
    """`1 trial`, `1,200 trials`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
